"""The verb that keeps a store tidy: gc."""

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from impart_flows.cli import options as opt
from impart_flows.cli.output import human_bytes, print_json, print_table

if TYPE_CHECKING:
    from impart_core.store.gc import GcReport

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    app.command()(gc)


def gc(
    grace: Annotated[str, typer.Option(help="Keep what is younger: a number and s, m, h, d or w.")] = "7d",
    history: Annotated[
        int | None,
        typer.Option(
            help="Keep what each name has pointed to in its last so many moves. [default: in all of them, so that "
            "every one can be rolled back]",
            show_default=False,
        ),
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete; without this, only say what would go.")] = False,
    store: opt.StoreOption = None,
    json: opt.JsonOption = False,
) -> None:
    """Find, and with --delete delete, what no name reaches.

    Kept are the artifacts that names point to or have pointed to with all that they were made from and their
    evaluations, whatever is younger than the grace time, and whatever a running flow may reuse. It can run beside
    flows that publish into the same store.
    """
    from impart_core.base.errors import ConfigError
    from impart_core.store.gc import collect
    from impart_core.store.store import Store

    if history is not None and history < 1:
        raise ConfigError(f"--history is {history}; it must be at least 1 move.")
    report = collect(Store(store), grace=_duration(grace), history=history, delete=delete)
    if json:
        print_json(report.model_dump(mode="json"))
        return
    _print_report(report)


def _print_report(report: "GcReport") -> None:
    rows = [
        [kind, str(len(ids)), ", ".join(found[:12] for found in ids[:4]) + (", …" if len(ids) > 4 else "")]
        for kind, ids in report.artifacts.items()
    ]
    if rows:
        print_table(["kind", "artifacts", "which"], rows)
    count = sum(map(len, report.artifacts.values()))
    done = "deleted" if report.deleted else "would go"
    typer.echo(
        f"{count} artifacts, {report.leftovers} leftover objects and {report.uploads} unfinished uploads {done}: "
        f"{human_bytes(report.bytes)}. {report.kept} artifacts stay."
    )
    if not report.complete:
        typer.echo("Not all of it yet: run it again.")
    if not report.deleted and (count or report.leftovers or report.uploads):
        typer.echo("Nothing was deleted. Use --delete to do it.")


def _duration(text: str) -> timedelta:
    from impart_core.base.errors import ConfigError

    found = re.fullmatch(r"([0-9]{1,6})([smhdw])", text)
    if not found:
        raise ConfigError(f"--grace is {text!r}; give a number and a unit: 90m, 12h, 7d, 2w.")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})
