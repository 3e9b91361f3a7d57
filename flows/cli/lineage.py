"""Verbs that tell where artifacts come from: lineage, why and diff."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from impart_flows.cli import options as opt
from impart_flows.cli.output import human_bytes, print_json

if TYPE_CHECKING:
    from impart_core.lineage.diff import Change, Difference, MetricChange
    from impart_core.lineage.why import Account, Input

_MOST_CHANGES = 20  # of one section as text; --json has them all
_INDENT = 12


def add_to(app: typer.Typer) -> None:
    """Register the verbs."""
    app.command()(lineage)
    app.command()(why)
    app.command()(diff)


def lineage(
    ref: opt.Ref,
    blocks: Annotated[
        bool, typer.Option("--blocks", help="Show every block and its factors, instead of their number.")
    ] = False,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="text (a tree), svg (a picture), mermaid (for wikis and code hosts), dot (Graphviz) or json.",
        ),
    ] = "text",
    out: Annotated[Path | None, typer.Option(help="Write to this file instead.", show_default=False)] = None,
    store: opt.StoreOption = None,
    json: opt.JsonOption = False,
) -> None:
    """Show what an artifact was made from, and what was made from it, down to the checkpoints.

    It is read from the store alone. An artifact that is gone is shown as missing, one that cannot be read as
    damaged. `impart lineage math@prod --format svg --out math.svg` draws a picture.
    """
    from impart_core.base.errors import OutputExistsError
    from impart_core.base.files import disk_errors, write_atomically
    from impart_core.lineage.draw import FORMATS
    from impart_core.lineage.graph import lineage_of
    from impart_core.store.names import resolve
    from impart_core.store.store import Store

    if out and out.is_dir():
        raise OutputExistsError(f"{out} is a folder. --out takes the name of a file to write.")
    draw, opened = FORMATS.get(form), Store(store)
    found = lineage_of(opened, resolve(opened, ref), parts=blocks)
    if json and not out and form in ("text", "json"):
        print_json(found.model_dump(mode="json"))
        return
    drawing = draw(found)
    counts = {"nodes": len(found.nodes), "edges": len(found.edges)}
    if out:
        target = out.absolute()
        with disk_errors(target):
            write_atomically(target, drawing.encode())
        if json:
            print_json({"artifact": found.focus, "format": form, "out": str(target), **counts})
        else:
            typer.echo(f"{target}  {counts['nodes']} nodes, {counts['edges']} edges")
    elif json:
        print_json({"artifact": found.focus, "format": form, "drawing": drawing, **counts})
    else:
        typer.echo(drawing, nl=False)


def why(ref: opt.Ref, store: opt.StoreOption = None, json: opt.JsonOption = False) -> None:
    """Say why an artifact is what it is: inputs and where they lay, settings and seeds, code, environment, cost.

    Inputs, settings, seeds and the operation's version make its id; the rest was recorded beside them.
    """
    from impart_core.lineage.why import explain
    from impart_core.store.names import resolve
    from impart_core.store.store import Store

    opened = Store(store)
    account = explain(opened, resolve(opened, ref))
    if json:
        print_json(account.model_dump(mode="json"))
    else:
        _print_account(account)


def diff(
    ref: opt.Ref,
    other: Annotated[str, typer.Argument(help="The artifact to compare it with, likewise.", show_default=False)],
    store: opt.StoreOption = None,
    json: opt.JsonOption = False,
) -> None:
    """List what differs between two artifacts: settings, inputs, content, code, and what was measured of them.

    What is equal is not listed. Metrics are compared where both deltas were evaluated on the same items.
    """
    from impart_core.lineage.diff import diff as compare
    from impart_core.store.names import resolve
    from impart_core.store.store import Store

    opened = Store(store)
    found = compare(opened, resolve(opened, ref), resolve(opened, other))
    if json:
        print_json(found.model_dump(mode="json"))
    else:
        _print_difference(found)


def _print_account(account: "Account") -> None:
    made = account.provenance
    libraries = ", ".join(f"{name} {version}" for name, version in made.libraries.items())
    _print_field("artifact", account.artifact)
    _print_field("names", ", ".join(account.names))
    _print_field("what", f"{account.kind}: {account.summary}")
    _print_field("made by", f"{account.operation}, version {account.operation_version}")
    _print_field("from", *map(_input, account.inputs))
    _print_field("settings", *(f"{key} = {_value(value)}" for key, value in account.config.items()))
    _print_field("seeds", ", ".join(f"{key} = {value}" for key, value in account.seeds.items()))
    _print_field("parents", *(parent[:12] for parent in account.parents))
    _print_field(
        "measured",
        *(
            f"{task} {metric} {_measured(value)} ({account.items.get(task, 0)} items)"
            for task, metrics in account.metrics.items()
            for metric, value in metrics.items()
        ),
    )
    _print_field("code", f"impart {made.code_version}, sources {made.code_digest[:12] or 'not recorded'}")
    _print_field("with", made.system, libraries)
    _print_field("when", f"{made.started}, by {made.user}")
    _print_field("took", f"{made.seconds:.1f} s, peak memory {human_bytes(made.peak_rss_bytes)}")
    _print_field("run", made.run)


def _print_difference(found: "Difference") -> None:
    if found.same:
        typer.echo(f"Both are {found.a[:12]}: one artifact, equal in everything.")
        return
    typer.echo(f"a {found.a[:12]}, b {found.b[:12]}")
    for title in ("operation", "config", "inputs", "content"):
        _print_changes(title, list(map(_change, getattr(found, title))))
    if found.shared_blocks is not None:
        typer.echo(f"{'':{_INDENT}}shared blocks: {found.shared_blocks}")
    _print_changes("code", list(map(_change, found.provenance)))
    _print_changes("metrics", list(map(_metric_change, found.metrics)))


def _print_changes(title: str, changes: list[str]) -> None:
    more = len(changes) - _MOST_CHANGES
    _print_field(title, *changes[:_MOST_CHANGES], f"and {more} more; --json lists them all" if more > 0 else "")


def _print_field(title: str, *found: str) -> None:
    """Print lines under a title to their left, nothing where there are none."""
    from impart_core.lineage.draw.labels import plain

    for number, line in enumerate(filter(None, found)):
        typer.echo(f"{'' if number else title:{_INDENT}}{plain(line)}")


def _input(given: "Input") -> str:
    counts = [f"{count} {what}" for what in ("tensors", "files") if (count := getattr(given, what)) is not None]
    return "  ".join(filter(None, (given.role, given.id[:12], ", ".join(counts), given.location)))


def _change(change: "Change") -> str:
    return f"{change.what}: {_value(change.a)} → {_value(change.b)}"


def _metric_change(change: "MetricChange") -> str:
    error = "" if change.stderr is None else f" ± {change.stderr:.4f}"
    where = f"{change.split}, {change.limit} items" if change.limit else change.split
    return (
        f"{change.task} ({where}) {change.metric}: {_measured(change.a)} → {_measured(change.b)}, "
        f"{change.difference:+.4f}{error}"
    )


def _measured(value: tuple[float, float | None]) -> str:
    return f"{value[0]:.4f}" + ("" if value[1] is None else f" ± {value[1]:.4f}")


def _value(value: Any) -> str:
    """Return a value for people, digests in short."""
    if isinstance(value, str):
        return value[:12] if len(value) == 64 else value
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)
