"""The verb `evaluate`: a model folder, or a delta beside its base → metrics."""

from pathlib import Path
from typing import Annotated

import typer

from impart_core.engine.evaluate import check_evaluate
from impart_core.engine.requests import EvaluateRequest, absolute
from impart_flows.cli import options as opt
from impart_flows.cli.flags import from_flags
from impart_flows.cli.output import print_json, print_table, progress, warn, warn_of_faults
from impart_flows.embedded import prefect_server
from impart_flows.evaluate import run_evaluate

_BASE = typer.Option(show_default="where it lay", help="The base of a delta or a PEFT adapter.")
Refresh = Annotated[bool, typer.Option("--refresh", help="Measure again, whatever is there.")]


_SEED = typer.Option("--seed", help="Seed of all draws.")


@from_flags(EvaluateRequest, without=("refresh_from",), base=_BASE, seed=_SEED)
def evaluate(request: EvaluateRequest, refresh: Refresh = False, json: opt.JsonOption = False) -> None:
    """Measure a model with lm-evaluation-harness; finished measurements are reused from the store.

    Example: impart evaluate math@cr16 --base BASE --tasks tinyzoo_math --limit 50
    """
    trust = request.trust.model_copy(update={"refresh_from": "digest" if refresh else None})
    places = {} if request.base is None else {"base": absolute(request.base)}
    if request.base is None and Path(request.model).expanduser().exists():
        places["model"] = absolute(request.model)
    request = request.model_copy(update={**places, "trust": trust})
    model = check_evaluate(request)
    warn(model.checkpoint.notes if model.checkpoint and model.checkpoint.adapter else ())
    with progress(quiet=json) as reporter, prefect_server(reporter):
        results = run_evaluate(request, model, reporter)
    warn_of_faults(
        [result.fault for result in results if result.fault], [result.id for result in results if result.changed]
    )
    if json:
        print_json({"model": request.model, "results": [result.model_dump(mode="json") for result in results]})
        return
    rows = [
        [task, metric, f"{value:.4f}", "" if error is None else f"{error:.4f}", str(result.items[task])]
        for result in results
        for task, metrics in result.metrics.items()
        for metric, (value, error) in metrics.items()
    ]
    print_table(["task", "metric", "value", "standard error", "items"], rows)
