"""The verb `tinyzoo build`: the zoo in a folder of its own, copied or trained."""

from pathlib import Path
from typing import Annotated

import typer

from impart_core import tinyzoo
from impart_core.tinyzoo import recipe
from impart_flows.cli import options as opt
from impart_flows.cli.output import errors, print_json, say

Out = Annotated[Path, typer.Option(help="The folder to make.")]
Train = Annotated[bool, typer.Option(help="Train the models again from nothing (about 45 minutes on two cores).")]
Seed = Annotated[int, typer.Option(help="Seed of the training.")]


def build(
    out: Out, train: Train = False, seed: Seed = 0, zoo: opt.TinyZoo = "first", json: opt.JsonOption = False
) -> None:
    """Make the zoo in a folder: a copy of the shipped models, or models trained anew by the same recipe.

    Example: impart tinyzoo build --out zoo
    """
    tinyzoo.path(zoo=zoo)  # refuses a zoo that does not exist
    if train:
        recipe.train(out, seed=seed, log=lambda line: errors.print(line), recipe=recipe.RECIPES[zoo])
    else:
        tinyzoo.build(out, zoo)
    folder = str(out.absolute())
    print_json({"path": folder, "trained": train}) if json else say(str(folder))
