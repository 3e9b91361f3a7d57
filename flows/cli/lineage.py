"""The verb `lineage`: what an artifact was made from, and what was made from it."""

from pathlib import Path
from typing import Annotated

import typer

from impart_core.base.errors import OutputExistsError
from impart_core.base.files import disk_errors, write_atomically
from impart_core.lineage.draw import FORMATS
from impart_core.lineage.graph import lineage_of
from impart_core.store.names import resolve
from impart_core.store.store import Store
from impart_flows.cli import options as opt
from impart_flows.cli.output import print_json, say

Blocks = Annotated[bool, typer.Option("--blocks", help="Show every block and its factors, instead of their number.")]
Format = Annotated[
    str, typer.Option("--format", help="text (a tree), svg, mermaid (for wikis), dot (Graphviz) or json.")
]
File = Annotated[Path | None, typer.Option(help="Write to this file instead.")]


def lineage(
    ref: opt.Ref,
    blocks: Blocks = False,
    form: Format = "text",
    out: File = None,
    store: opt.StoreOption = None,
    json: opt.JsonOption = False,
) -> None:
    """Show what an artifact was made from, and what was made from it, down to the checkpoints.

    It is read from the store alone. An artifact that is gone is shown as missing, one that cannot be read as
    damaged.

    Example: impart lineage math@prod --format svg --out math.svg
    """
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
            say(f"{target}  {counts['nodes']} nodes, {counts['edges']} edges")
    elif json:
        print_json({"artifact": found.focus, "format": form, "drawing": drawing, **counts})
    else:
        for line in drawing.splitlines():
            say(line)
