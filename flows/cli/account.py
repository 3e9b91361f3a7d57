"""Verbs that tell why artifacts are what they are: why and diff."""

from typing import Annotated, Any

import typer

from impart_core.lineage.diff import Change, Difference, MetricChange
from impart_core.lineage.diff import diff as compare
from impart_core.lineage.why import Account, Input, explain
from impart_core.store.names import resolve
from impart_core.store.store import Store
from impart_flows.cli import options as opt
from impart_flows.cli.output import human_bytes, human_seconds, say, show

_MOST_CHANGES = 20  # of one section as text; --json has them all
_INDENT = 12
Other = Annotated[str, typer.Argument(help="The artifact to compare it with, likewise.")]


def why(ref: opt.Ref, store: opt.StoreOption = None, json: opt.JsonOption = False) -> None:
    """Say why an artifact is what it is: inputs and where they lay, settings and seeds, code, environment, cost.

    Inputs, settings, seeds and the operation's version make its id; the rest was recorded beside them.

    Example: impart why math@cr16
    """
    opened = Store(store)
    show(explain(opened, resolve(opened, ref)), json, _print_account)


def diff(ref: opt.Ref, other: Other, store: opt.StoreOption = None, json: opt.JsonOption = False) -> None:
    """List what differs between two artifacts: settings, inputs, content, code, and what was measured of them.

    What is equal is not listed. Metrics are compared where both deltas were evaluated on the same items.

    Example: impart diff math@cr16 math@prod
    """
    opened = Store(store)
    show(compare(opened, resolve(opened, ref), resolve(opened, other)), json, _print_difference)


def _print_account(account: Account) -> None:
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
    _print_field("when", made.made_by)
    _print_field("took", f"{human_seconds(made.seconds)}, peak memory {human_bytes(made.peak_rss_bytes)}")
    _print_field("run", made.run)


def _print_difference(found: Difference) -> None:
    if found.same:
        say(f"Both are {found.a[:12]}: one artifact, equal in everything.")
        return
    say(f"a {found.a[:12]}, b {found.b[:12]}")
    for title in ("operation", "config", "inputs", "content"):
        _print_changes(title, list(map(_change, getattr(found, title))))
    if found.shared_blocks is not None:
        say(f"{'':{_INDENT}}shared blocks: {found.shared_blocks}")
    _print_changes("code", list(map(_change, found.provenance)))
    _print_changes("metrics", list(map(_metric_change, found.metrics)))


def _print_changes(title: str, changes: list[str]) -> None:
    more = len(changes) - _MOST_CHANGES
    _print_field(title, *changes[:_MOST_CHANGES], f"and {more} more; --json lists them all" if more > 0 else "")


def _print_field(title: str, *found: str) -> None:
    """Print lines under a title to their left, nothing where there are none."""
    for number, line in enumerate(filter(None, found)):
        say(f"{'' if number else title:{_INDENT}}{line}")


def _input(given: Input) -> str:
    counts = [f"{count} {what}" for what in ("tensors", "files") if (count := getattr(given, what)) is not None]
    return "  ".join(filter(None, (given.role, given.id[:12], ", ".join(counts), given.location)))


def _change(change: Change) -> str:
    return f"{change.what}: {_value(change.a)} → {_value(change.b)}"


def _metric_change(change: MetricChange) -> str:
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
