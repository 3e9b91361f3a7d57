"""The verb `tinyzoo path`: where the small real models lie that ship with the package."""

from typing import Annotated

import typer

from impart_core import tinyzoo
from impart_flows.cli import options as opt
from impart_flows.cli.output import print_json, say

Name = Annotated[str | None, typer.Argument(help="base, math, code or chat; all of them when left out.")]


def path(name: Name = None, zoo: opt.TinyZoo = "first", json: opt.JsonOption = False) -> None:
    """Print the folder of one of the zoo's models, or the folder that holds them all.

    Example: impart tinyzoo path math
    """
    folder = str(tinyzoo.path(name, zoo))
    print_json({"path": folder}) if json else say(str(folder))
