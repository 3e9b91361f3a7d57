"""The verb `mlflow push`: a delta, as a pointer, on a tracking server."""

from typing import Annotated

import typer

from impart_core.store.names import resolve
from impart_core.store.store import Store
from impart_core.zoo.file import DEFAULT_EXPERIMENT
from impart_flows.cli import options as opt
from impart_flows.cli.output import say, show
from impart_flows.mlflow import Registered
from impart_flows.mlflow import push as push_delta

Experiment = Annotated[str, typer.Option(help="The experiment of its run.")]


def push(
    ref: opt.Ref,
    experiment: Experiment = DEFAULT_EXPERIMENT,
    store: opt.StoreOption = None,
    json: opt.JsonOption = False,
) -> None:
    """Register a delta with MLflow: a run with settings, ratios and quality, and a model version that points to it.

    No weights are sent. The server is that of MLFLOW_TRACKING_URI. Pushing twice makes nothing twice.

    Example: impart mlflow push math@prod
    """
    opened = Store(store)
    show(push_delta(opened, ref, resolve(opened, ref), experiment), json, _print_registered)


def _print_registered(found: Registered) -> None:
    say(f"model    {found.model}, version {found.version}{'' if found.created else ' (was there)'}")
    say(f"run      {found.run} in {found.experiment}")
    say(f"source   {found.source}")
