"""The verb that keeps a store tidy: gc."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from impart_core.base.errors import ConfigError
from impart_core.store.gc import GcReport, collect
from impart_core.store.retention import Rules
from impart_core.store.store import Store
from impart_flows.cli import options as opt
from impart_flows.cli.output import human_bytes, print_table, say, show

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_SHOWN = 20
_DAY = timedelta(days=1)
Grace = Annotated[
    str | None,
    typer.Option(help="Keep what is younger: a number and s, m, h, d or w.", show_default="7d, or the zoo file's"),
]
History = Annotated[
    int | None,
    typer.Option(help="Keep what each name pointed to in so many moves. [default: in all, for rollback]"),
]
Since = Annotated[str | None, typer.Option("--history-age", help="Keep what was in force since then: 90d.")]
Keep = Annotated[
    list[str] | None, typer.Option("--keep", help="Keep all moves of names that fit: '*@prod'; repeat for more.")
]
ZooRules = Annotated[Path | None, typer.Option("--zoo", help="The rules and the store of this zoo file.")]
Delete = Annotated[bool, typer.Option("--delete", help="Delete; without this, only say what would go.")]
Everything = Annotated[bool, typer.Option("--everything", help="Delete even where no artifact would stay.")]


def gc(
    grace: Grace = None,
    history: History = None,
    since: Since = None,
    keep: Keep = None,
    zoo: ZooRules = None,
    delete: Delete = False,
    everything: Everything = False,
    store: opt.StoreOption = None,
    json: opt.JsonOption = False,
) -> None:
    """Find, and with --delete delete, what no name reaches; say what each rule keeps.

    Kept are the artifacts that names point to or have pointed to with all that they were made from and their
    evaluations, whatever is younger than the grace time, and whatever a running flow may reuse. It can run beside
    flows that publish into the same store.

    Example: impart gc --history 3 --keep '*@prod' --grace 30d --delete
    """
    given = {
        "grace_days": None if grace is None else _duration("--grace", grace) / _DAY,
        "history": history,
        "history_days": None if since is None else _duration("--history-age", since) / _DAY,
        "keep": tuple(keep) if keep else None,
    }
    typed = {name: value for name, value in given.items() if value is not None}
    if history is not None and history < 1:
        raise ConfigError(f"--history is {history}; it must be at least 1 move.")
    if zoo is not None and typed:
        raise ConfigError("--zoo takes the rules of the zoo file. Leave --grace, --history, --history-age, --keep out.")
    if zoo is None:
        rules, opened = Rules.model_validate(typed), Store(store)
    else:
        from impart_core.zoo.file import read_zoo_file

        file = read_zoo_file(zoo)
        rules, opened = file.retention, Store(store or file.store)
    show(collect(opened, rules, delete=delete, everything=everything), json, _print_report)


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
    for rule in report.kept_by:
        say(f"kept by: {rule.rule}: {rule.artifacts} artifacts, {human_bytes(rule.bytes)}")
    if not report.deleted:
        for one in report.listed[:_SHOWN]:
            say(f"{one.id[:12]}  {one.kind}  {one.summary}  kept by: {'; '.join(one.kept_by)}")
        if len(report.listed) > _SHOWN:
            say(f"and {len(report.listed) - _SHOWN} more: --json lists all")
    if not report.complete:
        say("Not all of it yet: run it again.")
    if not report.deleted and (count or report.leftovers or report.uploads):
        say("Nothing was deleted. Use --delete to do it.")


def _duration(flag: str, text: str) -> timedelta:
    found = re.fullmatch(r"([0-9]{1,6})([smhdw])", text)
    if not found:
        raise ConfigError(f"{flag} is {text!r}; give a number and a unit: 90m, 12h, 7d, 2w.")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})
