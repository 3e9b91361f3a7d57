"""The verb `inspect`: what an artifact holds."""

from collections.abc import Iterator
from typing import Any

from impart_core.artifacts.block import BlockContent, TensorEntry
from impart_core.artifacts.delta import Delta, DeltaContent, open_delta
from impart_core.artifacts.factors import FactorsContent
from impart_core.artifacts.merged import MergedContent
from impart_core.checkpoint.carried import is_code
from impart_core.store.manifest import Manifest
from impart_core.store.names import resolve
from impart_core.store.store import Store
from impart_flows.cli import options as opt
from impart_flows.cli.output import human_bytes, print_json, print_table, ratio, say


def inspect(ref: opt.Ref, store: opt.StoreOption = None, json: opt.JsonOption = False) -> None:
    """Show what an artifact holds: how it was made, each block's tensors and bytes, both ratios.

    The factors of a block, which its manifest names as its parent, are shown matrix by matrix.

    Example: impart inspect math@cr16
    """
    opened = Store(store)
    manifest = opened.manifest(resolve(opened, ref))
    delta = open_delta(opened, manifest.id) if isinstance(manifest.content, DeltaContent) else None
    if json:
        print_json(_describe(delta) if delta else manifest.model_dump(mode="json"))
    elif delta:
        _print_delta(delta)
    elif isinstance(manifest.content, FactorsContent):
        _print_factors(manifest, manifest.content)
    else:
        _print_manifest(manifest)
        if isinstance(manifest.content, MergedContent):
            _print_merged(manifest, manifest.content)


def _print_merged(manifest: Manifest, merged: MergedContent) -> None:
    """Print the models of a merge, and what it gave."""
    roles = [role for role in manifest.recipe.inputs if not role.endswith("_files")]
    rows = [
        [role, model, str(manifest.recipe.inputs[role])[:12]]
        for role, model in zip(roles, merged.models, strict=False)  # a stranger's
    ]
    print_table(["", "model", "id"], rows)
    say(f"merged  {merged.merged[:12]}: {merged.tensors} tensors, {human_bytes(merged.bytes)} of weights")


def _print_delta(delta: Delta) -> None:
    described = _describe(delta)
    _print_manifest(delta.manifest)
    rows = [
        [block["name"], block["id"][:12], *(f"{block[key]:,}" for key in ("tensors", "codes", "bytes"))]
        for block in described["blocks"]
    ]
    rows.append(["(delta)", delta.manifest.id[:12], "", "", f"{described['own_bytes']:,}"])
    if delta.over:
        codes = f"{sum(entry.bytes for _, entry in _tensors(delta.over)):,}"
        rows.append(["(over)", delta.over.id[:12], "", codes, f"{delta.over.bytes:,}"])
    print_table(["block", "artifact", "tensors", "bytes of codes", "bytes on disk"], rows)
    _print_quantized(delta)
    _print_fidelity(delta)
    say()
    say(f"cr_projection  {ratio(delta.content.cr_projection)}")
    say(f"cr_model       {ratio(delta.cr_model)}")
    say(f"bytes          {delta.bytes:,}")


def _tensors(delta: Delta) -> Iterator[tuple[str, TensorEntry]]:
    contents = (block.content for block in delta.blocks)
    return ((name, entry) for one in contents if isinstance(one, BlockContent) for name, entry in one.tensors.items())


def _print_fidelity(delta: Delta) -> None:
    """Print what the codes of each matrix keep of it, where that was measured."""
    rows = [
        [name if len(entry.fidelity) == 1 else f"{name} ({number})", f"{one.cosine_squared:.4f}", f"{one.gain:.4f}"]
        for name, entry in _tensors(delta)
        for number, one in enumerate(entry.fidelity)
    ]
    if rows:
        say()
        print_table(["tensor", "ρ²", "gain"], rows)


def _print_quantized(delta: Delta) -> None:
    """Print how the codes of a delta are quantised, tensor by tensor, and the bytes of each part."""
    found = [(name, entry.quantized) for name, entry in _tensors(delta) if entry.quantized]
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
    say()
    print_table(["tensor", "bits x vectors", "group", *parts, "codes packed"], rows)
    saved = packed - sums[parts.index("codes")]
    say(f"lossless stage  {saved:,} bytes saved, {saved / packed:.1%} of the packed codes")


def _print_factors(manifest: Manifest, content: FactorsContent) -> None:
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


def _print_manifest(manifest: Manifest, settings: str | None = None) -> None:
    made = manifest.provenance
    settings = settings or ", ".join(f"{key}={_short(value)}" for key, value in manifest.recipe.config.items())
    say(f"artifact  {manifest.id}")
    say(f"made by   {manifest.recipe.operation} ({settings})")
    say(f"with      impart {made.code_version}, {made.system}, {made.made_by}")
    for entry in manifest.files:
        code = "  code, never run by impart" if is_code(entry.name) else ""
        say(f"file      {entry.path}  {entry.size:,} bytes{code}")
    say()


def _short(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}={item}" for key, item in value.items()) + "}"
    return str(value)


def _describe(delta: Delta) -> dict[str, Any]:
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
        **({"over": {"artifact": delta.over.id, "bytes": delta.over.bytes}} if delta.over else {}),
        "files": [entry.model_dump(mode="json") for entry in delta.manifest.files],
        "blocks": blocks,
    }
