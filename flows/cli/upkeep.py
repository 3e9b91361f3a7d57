"""The verb that keeps a store tidy: gc."""

import re
from datetime import timedelta
from typing import Annotated

import typer

from impart_core.base.errors import ConfigError
from impart_core.store.gc import GcReport, collect
from impart_core.store.store import Store
from impart_flows.cli import options as opt
from impart_flows.cli.output import human_bytes, print_table, say, show

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
Grace = Annotated[str, typer.Option(help="Keep what is younger: a number and s, m, h, d or w.")]
History = Annotated[
    int | None,
    typer.Option(help="Keep what each name pointed to in so many moves. [default: in all, for rollback]"),
]
Delete = Annotated[bool, typer.Option("--delete", help="Delete; without this, only say what would go.")]


def gc(
    grace: Grace = "7d",
    history: History = None,
    delete: Delete = False,
    store: opt.StoreOption = None,
    json: opt.JsonOption = False,
) -> None:
    """Find, and with --delete delete, what no name reaches.

    Kept are the artifacts that names point to or have pointed to with all that they were made from and their
    evaluations, whatever is younger than the grace time, and whatever a running flow may reuse. It can run beside
    flows that publish into the same store.

    Example: impart gc --grace 30d --delete
    """
    if history is not None and history < 1:
        raise ConfigError(f"--history is {history}; it must be at least 1 move.")
    show(collect(Store(store), grace=_duration(grace), history=history, delete=delete), json, _print_report)


def _print_report(report: GcReport) -> None:
    rows = [
        [kind, str(len(ids)), ", ".join(found[:12] for found in ids[:4]) + (", …" if len(ids) > 4 else "")]
        for kind, ids in report.artifacts.items()
    ]
    if rows:
        print_table(["kind", "artifacts", "which"], rows)
    count = sum(map(len, report.artifacts.values()))
    done = "deleted" if report.deleted else "would go"
    say(
        f"{count} artifacts, {report.leftovers} leftover objects and {report.uploads} unfinished uploads {done}: "
        f"{human_bytes(report.bytes)}. {report.kept} artifacts stay."
    )
    if not report.complete:
        say("Not all of it yet: run it again.")
    if not report.deleted and (count or report.leftovers or report.uploads):
        say("Nothing was deleted. Use --delete to do it.")


def _duration(text: str) -> timedelta:
    found = re.fullmatch(r"([0-9]{1,6})([smhdw])", text)
    if not found:
        raise ConfigError(f"--grace is {text!r}; give a number and a unit: 90m, 12h, 7d, 2w.")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})
