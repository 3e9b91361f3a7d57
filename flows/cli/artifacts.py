"""Verbs that look at a store: inspect, verify and ls."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from impart_flows.cli import options as opt
from impart_flows.cli.output import human_bytes, print_json, print_table, progress, ratio
from impart_flows.cli.remaining import by_bytes

if TYPE_CHECKING:
    from impart_core.artifacts.delta import Delta
    from impart_core.artifacts.factors import FactorsContent
    from impart_core.store.manifest import Manifest
    from impart_core.store.store import Store


def add_to(app: typer.Typer) -> None:
    """Register the verbs."""
    app.command()(inspect)
    app.command()(verify)
    app.command("ls")(list_artifacts)


def inspect(ref: opt.Ref, store: opt.StoreOption = None, json: opt.JsonOption = False) -> None:
    """Show what an artifact holds: how it was made, each block's tensors and bytes, both ratios.

    The factors of a block, which its manifest names as its parent, are shown matrix by matrix.
    """
    from impart_core.artifacts.delta import DeltaContent, open_delta
    from impart_core.artifacts.factors import FactorsContent
    from impart_core.store.names import resolve
    from impart_core.store.store import Store

    opened = Store(store)
    manifest = opened.manifest(resolve(opened, ref))
    if not isinstance(manifest.content, DeltaContent):
        if json:
            print_json(manifest.model_dump(mode="json"))
        elif isinstance(manifest.content, FactorsContent):
            _print_factors(manifest, manifest.content)
        else:
            _print_manifest(manifest)
        return
    delta = open_delta(opened, manifest.id)
    described = _describe(delta)
    if json:
        print_json(described)
        return
    _print_manifest(manifest)
    blocks = described["blocks"]
    rows = [
        [block["name"], block["id"][:12], *(f"{block[key]:,}" for key in ("tensors", "codes", "bytes"))]
        for block in blocks
    ]
    rows.append(["(delta)", manifest.id[:12], "", "", f"{described['own_bytes']:,}"])
    print_table(["block", "artifact", "tensors", "bytes of codes", "bytes on disk"], rows)
    _print_quantized(delta)
    typer.echo(f"\ncr_projection  {ratio(delta.content.cr_projection)}")
    typer.echo(f"cr_model       {ratio(delta.cr_model)}")
    typer.echo(f"bytes          {delta.bytes:,}")


def verify(
    ref: opt.OptionalRef = None,
    every: Annotated[bool, typer.Option("--all", help="Verify every artifact of the store instead of one.")] = False,
    store: opt.StoreOption = None,
    json: opt.JsonOption = False,
) -> None:
    """Re-read every file of an artifact, or of all: sizes, digests, headers and codes.

    Exit code 1 when a fault is found. What a killed writer left beside artifacts is counted, and no fault.
    """
    from impart_core.base.errors import ConfigError
    from impart_core.store.names import resolve
    from impart_core.store.store import Store
    from impart_core.store.verify import verify as verify_artifact

    if (ref is None) != every:
        raise ConfigError("Say what to verify: either an artifact (its name or id) or --all.")
    opened = Store(store)
    if ref is None:
        _verify_store(opened, json)
        return
    artifact = resolve(opened, ref)
    with progress(quiet=json) as reporter:
        report = verify_artifact(opened, artifact, lambda done, total: reporter("verify", done, total, ""))
    if json:
        print_json({**report.model_dump(mode="json"), "ok": not report.faults})
    else:
        _print_faults(report.faults)
        state = _state(report.faults)
        typer.echo(
            f"{artifact[:12]} is {state}: {report.artifacts} artifacts, {report.files} files, {report.bytes:,} bytes"
        )
    if report.faults:
        raise typer.Exit(1)


def _verify_store(store: "Store", json: bool) -> None:
    from impart_core.store.verify import verify_store

    with progress(quiet=json) as reporter:
        report = verify_store(store, by_bytes(reporter, "verify"))
    if json:
        print_json({**report.model_dump(mode="json"), "ok": not report.faults})
    else:
        _print_faults(report.faults)
        typer.echo(
            f"{store.url} is {_state(report.faults)}: {report.artifacts} artifacts, {report.files} files, "
            f"{report.bytes:,} bytes"
        )
        if report.leftovers:
            typer.echo(f"{report.leftovers} leftovers beside them, {human_bytes(report.leftover_bytes)}")
    if report.faults:
        raise typer.Exit(1)


def _print_faults(faults: Sequence[str]) -> None:
    for fault in faults:
        typer.echo(f"fault: {fault}")


def _state(faults: Sequence[str]) -> str:
    return f"{len(faults)} faults" if faults else "whole"


def list_artifacts(store: opt.StoreOption = None, json: opt.JsonOption = False) -> None:
    """List the deltas and evaluations in a store, with their names."""
    from impart_core.store.catalog import list_entries
    from impart_core.store.store import Store

    opened = Store(store)
    entries = list_entries(opened)
    if json:
        print_json({"store": opened.url, "artifacts": [entry.model_dump(mode="json") for entry in entries]})
        return
    if not entries:
        typer.echo(f"The store {opened.url} holds no artifacts yet.")
        return
    rows = [
        [
            ", ".join(entry.names) or "—",
            entry.id[:12],
            entry.kind,
            entry.summary,
            human_bytes(entry.bytes),
            entry.started,
        ]
        for entry in entries
    ]
    print_table(["name", "artifact", "kind", "what", "bytes", "made"], rows, title=opened.url)


def _print_quantized(delta: "Delta") -> None:
    """Print how the codes of a delta are quantised, tensor by tensor, and the bytes of each part."""
    from impart_core.artifacts.block import BlockContent

    tensors = [
        (name, entry)
        for block in delta.blocks
        if isinstance(block.content, BlockContent)
        for name, entry in block.content.tensors.items()
    ]
    found = [(name, entry.quantized) for name, entry in tensors if entry.quantized]
    if not found:
        return
    parts = list(found[0][1].parts)
    rows = [
        [name, one.bits, str(one.group_size or "all"), *(f"{one.parts[part]:,}" for part in parts), f"{one.packed:,}"]
        for name, one in found
    ]
    sums = [sum(one.parts[part] for _, one in found) for part in parts]
    packed = sum(one.packed for _, one in found)
    rows.append([f"({len(found)} tensors)", "", "", *(f"{size:,}" for size in sums), f"{packed:,}"])
    typer.echo("")
    print_table(["tensor", "bits x vectors", "group", *parts, "codes packed"], rows)
    saved = packed - sums[parts.index("codes")]
    typer.echo(f"lossless stage  {saved:,} bytes saved, {saved / packed:.1%} of the packed codes")


def _print_factors(manifest: "Manifest", content: "FactorsContent") -> None:
    lowest = manifest.recipe.config["lowest_cr"]
    _print_manifest(manifest, f"block={content.name}")
    rows = [
        [
            name,
            "×".join(map(str, entry.shape)),
            "every" if (cr := lowest.get(name, lowest.get(name.rpartition("[")[0]))) is None else f"from CR {cr:g}",
            str(entry.rank),
            entry.route,
            str(entry.fallbacks),
            f"{entry.bytes:,}",
        ]
        for name, entry in content.matrices.items()
    ]
    rank, fallbacks, size = (
        sum(getattr(entry, what) for entry in content.matrices.values()) for what in ("rank", "fallbacks", "bytes")
    )
    rows.append([f"({len(content.matrices)} matrices)", "", "", str(rank), "", str(fallbacks), f"{size:,}"])
    print_table(["matrix", "shape", "for requests", "triplets", "route", "fallbacks", "bytes"], rows)


def _print_manifest(manifest: "Manifest", settings: str | None = None) -> None:
    made = manifest.provenance
    settings = settings or ", ".join(f"{key}={_short(value)}" for key, value in manifest.recipe.config.items())
    typer.echo(f"artifact  {manifest.id}")
    typer.echo(f"made by   {manifest.recipe.operation} ({settings})")
    typer.echo(f"with      impart {made.code_version}, {made.system}, by {made.user} at {made.started}")
    for entry in manifest.files:
        typer.echo(f"file      {entry.path}  {entry.size:,} bytes")
    typer.echo("")


def _short(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}={item}" for key, item in value.items()) + "}"
    return str(value)


def _describe(delta: "Delta") -> dict[str, Any]:
    from impart_core.artifacts.block import BlockContent

    blocks = [
        {
            "name": pointer.name,
            "id": pointer.id,
            "tensors": len(block.content.tensors),
            "codes": sum(tensor.bytes for tensor in block.content.tensors.values()),
            "bytes": block.nbytes,
            "files": [entry.model_dump(mode="json") for entry in block.files],
            "factors": next((found for found in block.parents if found == block.recipe.inputs.get("factors")), None),
            "parents": block.parents,
            "contents": block.model_dump(mode="json")["content"]["tensors"],
        }
        for pointer, block in zip(delta.content.blocks, delta.blocks, strict=True)
        if isinstance(block.content, BlockContent)
    ]
    return {
        "artifact": delta.manifest.id,
        "recipe": delta.manifest.recipe.model_dump(mode="json"),
        "provenance": delta.manifest.provenance.model_dump(mode="json"),
        "cr_projection": delta.content.cr_projection,
        "cr_model": delta.cr_model,
        "bytes": delta.bytes,
        "own_bytes": delta.manifest.nbytes,
        "files": [entry.model_dump(mode="json") for entry in delta.manifest.files],
        "blocks": blocks,
    }
