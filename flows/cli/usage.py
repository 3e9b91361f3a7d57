"""The verb that says what a store holds in bytes: du."""

from typing import Annotated

import typer

from impart_core.lineage.usage import GROUPINGS, StoreUsage, usage_of
from impart_core.store.store import Store
from impart_flows.cli import options as opt
from impart_flows.cli.output import human_bytes, print_table, say, show

By = Annotated[str, typer.Option("--by", help=f"{', '.join(GROUPINGS)}.")]


def du(by: By = "kind", store: opt.StoreOption = None, json: opt.JsonOption = False) -> None:
    """Show what a store holds in bytes: stored, what copies would take, what the dense models take, what gc frees.

    Example: impart du --by owner
    """
    show(usage_of(Store(store), by), json, _print_usage)


def _print_usage(found: StoreUsage) -> None:
    columns = [found.by, "artifacts", "alone", "shared", "if each had its own", "dense", "gc frees"]
    rows = [
        [one.label, str(one.artifacts), *(human_bytes(size) for size in (one.alone, one.shared, one.undeduplicated)),
         human_bytes(one.dense) if one.dense else "—", human_bytes(one.unreachable)]
        for one in found.groups
    ]  # fmt: skip
    if rows:
        print_table(columns, rows, title=found.store)
        say()
    for line in found.lines(human_bytes):
        say(line)
