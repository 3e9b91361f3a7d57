"""Verbs of the tiny zoo: the small real models that ship with the package."""

from pathlib import Path
from typing import Annotated

import typer

from impart_flows.cli import options as opt
from impart_flows.cli.output import errors, print_json

app = typer.Typer(help="A small real model zoo: one base, three fine-tunes (math, code, chat).", no_args_is_help=True)


@app.command()
def path(
    name: Annotated[
        str | None,
        typer.Argument(help="base, math, code or chat; all of them when left out.", show_default=False),
    ] = None,
    json: opt.JsonOption = False,
) -> None:
    """Print the folder of one of the zoo's models, or the folder that holds them all."""
    from impart_core import tinyzoo

    folder = str(tinyzoo.path(name))
    print_json({"path": folder}) if json else typer.echo(folder)


@app.command()
def build(
    out: opt.Out,
    train: Annotated[
        bool, typer.Option(help="Train the models again from nothing (about 45 minutes on two cores).")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
    json: opt.JsonOption = False,
) -> None:
    """Make the zoo in a folder: a copy of the shipped models, or models trained anew by the same recipe."""
    from impart_core import tinyzoo

    if train:
        from impart_core.tinyzoo.recipe import train as train_zoo

        train_zoo(Path(out), seed=seed, log=lambda line: errors.print(line, markup=False))
    else:
        tinyzoo.build(Path(out))
    folder = str(Path(out).absolute())
    print_json({"path": folder, "trained": train}) if json else typer.echo(folder)
