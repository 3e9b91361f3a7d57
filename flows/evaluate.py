"""Flow: a model folder → metrics, each task's published on its own."""

from collections.abc import Sequence
from pathlib import Path

from impart_flows.progress import report
from impart_flows.run_page import show_evaluation
from impart_tasks.datasets import checkpoint_dataset, inputs_of, outputs_of
from impart_tasks.evaluate import evaluate_model
from impart_tasks.events import observed_run
from impart_tasks.references import EvaluationJob, EvaluationResult, Split, Trust
from impart_tasks.resources import current_flow_run, give_up, patiently
from prefect import flow

from impart_core.apply.dense import require_base
from impart_core.artifacts.delta import open_delta
from impart_core.base.errors import CheckpointError, ConfigError
from impart_core.base.numerics import resolve_device
from impart_core.base.settings import Frozen
from impart_core.checkpoint.index import open_checkpoint
from impart_core.checkpoint.location import is_remote
from impart_core.evaluate import check_tasks
from impart_core.store.names import resolve
from impart_core.store.store import Store


class EvaluateRequest(Frozen):
    """Which model is measured on what; `store` and `device` are no part of the artifact's id.

    `model` is a checkpoint's folder or, where `base` is given, an artifact: a delta against that base.
    """

    model: str
    base: str | None = None
    tasks: tuple[str, ...]
    split: Split = "test"
    limit: int | None = None
    store: str
    device: str = "auto"
    trust: Trust = Trust()


def check_evaluate(request: EvaluateRequest) -> str:
    """Check a request without loading a model; raise an `ImpartError` that says what to change.

    Returns:
        The model: its folder, or the delta's artifact id.
    """
    resolve_device(request.device)
    if request.limit is not None and request.limit < 1:
        raise ConfigError(f"The limit is {request.limit}; it must be at least 1 item.")
    if not request.tasks:
        raise ConfigError("No task is named. Give at least one with --tasks.")
    if request.base is None and is_remote(request.model):
        raise CheckpointError(
            f"{request.model} is no folder of this machine, and only folders can be evaluated. "
            "Download the model (`hf download`, `aws s3 cp --recursive`) and give its folder."
        )
    check_tasks(request.tasks)
    store = Store(request.store)
    store.require_writable()
    if request.base is None:
        open_checkpoint(request.model)
        return request.model
    delta = open_delta(store, resolve(store, request.model))
    require_base(delta, open_checkpoint(request.base))
    return delta.manifest.id


def evaluate_steps(jobs: Sequence[EvaluationJob]) -> list[EvaluationResult]:
    """Run evaluations one after another inside the flow that calls this: each uses all cores."""
    results = []
    report("evaluate", 0, len(jobs))
    for done, job in enumerate(jobs, 1):
        try:
            results.append(evaluate_model(job))
        except BaseException:
            give_up(current_flow_run())
            raise
        reused = " (reused)" if results[-1].cached else ""
        report("evaluate", done, len(jobs), f"{job.label} on {job.task}{reused}")
    return results


@flow(name="evaluate", flow_run_name="evaluate {request.model}")
def evaluate(request: EvaluateRequest) -> list[EvaluationResult]:
    """Measure a checkpoint folder, or the model that a delta gives, with lm-evaluation-harness and publish the metrics.

    Raises:
        ImpartError: the request cannot be carried out; the message says what to change.
    """
    label = Path(request.model).name
    with observed_run() as run:
        if request.base is None:
            run.inputs.append(checkpoint_dataset(request.model))
        model = patiently("check the request", lambda: check_evaluate(request))
        jobs = [_job(request, model, label, task) for task in request.tasks]
        run.inputs += [found for found in inputs_of(jobs[0]) if found not in run.inputs]
        results = evaluate_steps(jobs)
        run.outputs += [found for result in results for found in outputs_of(result, request.store)]
    show_evaluation(label, results)
    return results


def _job(request: EvaluateRequest, model: str, label: str, task: str) -> EvaluationJob:
    return EvaluationJob(
        label=label,
        model=model,
        base=request.base,
        task=task,
        split=request.split,
        limit=request.limit,
        store=request.store,
        device=request.device,
        trust=request.trust,
    )
