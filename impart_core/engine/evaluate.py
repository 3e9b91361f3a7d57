"""Measuring a model by lm-evaluation-harness: a delta is rebuilt once, whatever the number of its tasks."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from impart_core.apply.dense import reconstruct
from impart_core.apply.reader import require_base
from impart_core.artifacts.delta import Delta, open_delta
from impart_core.artifacts.evaluation import EvaluationContent, evaluation_recipe, publish_evaluation
from impart_core.base.errors import ConfigError
from impart_core.base.files import scratch_folder
from impart_core.base.numerics import resolve_device
from impart_core.base.retry import GPU, patiently, recording
from impart_core.checkpoint.adapter import ADAPTER_CONFIG
from impart_core.checkpoint.index import Checkpoint, open_checkpoint
from impart_core.checkpoint.writer import folder_of
from impart_core.engine.executor import Executor, Progress, stage
from impart_core.engine.preflight import open_side
from impart_core.engine.references import EvaluationJob, EvaluationResult, Run
from impart_core.engine.requests import EvaluateRequest, absolute
from impart_core.evaluation.catalogue import named_tasks
from impart_core.evaluation.harness import Evaluator, check_request
from impart_core.evaluation.options import MeasureOptions
from impart_core.evaluation.result import Evaluation
from impart_core.store.catalog import entry_of, note
from impart_core.store.manifest import Manifest
from impart_core.store.names import resolve
from impart_core.store.pins import pin
from impart_core.store.publish import Reuse, made_or_found
from impart_core.store.store import Store


@dataclass(frozen=True)
class Measurable:
    """A model that can be measured, and on what.

    Attributes:
        model: its folder, Hub id or URL, or the delta's artifact id.
        base: the base of a delta, opened.
        tasks: lm-eval's names of the tasks.
        measuring: how it is measured, with the folders of all tasks.
        merged: an adapter, merged into its base; None where the model is a whole one or a delta.
    """

    model: str
    base: Checkpoint | None
    tasks: tuple[str, ...]
    measuring: MeasureOptions
    merged: Checkpoint | None = None


def check_evaluate(request: EvaluateRequest) -> Measurable:
    """Check a request without loading a model; raise an `ImpartError` that says what to change."""
    resolve_device(request.device)
    tasks, measuring = named_tasks(request.tasks, request.measuring)
    check_request(tasks, request.limit, measuring, request.code)
    store = Store(request.store)
    store.require_writable()
    if request.base is None:
        opened = open_checkpoint(request.model)
        return Measurable(request.model, None, tasks, measuring, opened if opened.adapter else None)
    if _is_place(request.model):
        place = absolute(request.model)
        merged = open_side(place, open_side(request.base))
        if merged.adapter is None:
            raise ConfigError(f"{place} is a whole model, which needs no base. Leave out --base.")
        return Measurable(place, None, tasks, measuring, merged)
    delta, base = open_delta(store, resolve(store, request.model)), open_side(request.base)
    require_base(delta, base)
    return Measurable(delta.manifest.id, base, tasks, measuring)


def _is_place(model: str) -> bool:
    """Return whether a model beside a base is the place of an adapter: names and ids of deltas have no slash."""
    return "/" in model or (Path(model) / ADAPTER_CONFIG).is_file()


def evaluate(
    request: EvaluateRequest,
    executor: Executor,
    *,
    checked: Measurable | None = None,
    progress: Progress | None = None,
    run_id: str = "",
) -> tuple[EvaluationResult, ...]:
    """Measure a checkpoint folder, or the model that a delta gives, and publish the metrics of each task.

    Args:
        request: which model, on what.
        executor: runs the stage.
        checked: what `check_evaluate` returned for the request, where that was called before.
        progress: called with a stage, tasks done, their number, and what the last one was.
        run_id: the pipeline's id of the run, to be recorded.

    Raises:
        ImpartError: the request cannot be carried out; the message says what to change.
    """
    with recording():
        checked = checked or patiently("check the request", lambda: check_evaluate(request))
        job = EvaluationJob(
            run=Run(request.store, request.device, request.trust, id=run_id),
            label=Path(request.model).name,
            model=checked.model,
            base=checked.base,
            merged=checked.merged,
            tasks=checked.tasks,
            measuring=checked.measuring,
            split=request.split,
            limit=request.limit,
            code=request.code,
        )
        return evaluate_all([job], executor, progress)


def evaluate_all(
    jobs: list[EvaluationJob], executor: Executor, progress: Progress | None = None
) -> tuple[EvaluationResult, ...]:
    """Measure models one after another: each uses all cores."""
    results: list[EvaluationResult] = []
    tell, total = progress or (lambda *_: None), sum(len(job.tasks) for job in jobs)
    tell("evaluate", 0, total, "")
    for job in jobs:
        for result in executor.run(evaluate_model, job):
            results.append(result)
            reused = " (reused)" if result.cached else ""
            tell("evaluate", len(results), total, f"{job.label} on {result.task}{reused}")
    return tuple(results)


@stage("evaluate model", "evaluate {job.label}", GPU)
def evaluate_model(job: EvaluationJob) -> tuple[EvaluationResult, ...]:
    """Evaluate one model on its tasks and publish the metrics of each, unless the store holds them already.

    A delta is rebuilt into scratch, and the model loaded, for the first task whose metrics are not there.
    """
    store = job.run.open_store()
    model = job.merged or (open_delta(store, job.model) if job.base else open_checkpoint(job.model))
    with ExitStack() as stack:

        @cache
        def evaluator() -> Evaluator:
            device = str(resolve_device(job.run.device))
            return Evaluator(_folder_of(model, job, stack), device, job.measuring, job.code)

        return tuple(_measure(job, model, task, store, evaluator) for task in job.tasks)


def _measure(
    job: EvaluationJob, model: Checkpoint | Delta, task: str, store: Store, evaluator: Callable[[], Evaluator]
) -> EvaluationResult:
    watch = job.run.watch(**({"base": job.base.location} if job.base else {"checkpoint": job.model}))
    recipe = evaluation_recipe(model, task, job.split, job.limit, job.measuring)
    reuse = Reuse(job.run.trust.reread, job.run.trust.refresh_from is not None)
    parents = [model.manifest.id] if isinstance(model, Delta) else []

    def publish(measured: Evaluation) -> Manifest:
        with pin(store, [recipe.id]):
            manifest = publish_evaluation(store, recipe, measured, parents, watch, reuse=reuse)
            note(store, [entry_of(manifest)])
            return manifest

    def make() -> Manifest:
        measured = evaluator().measure([task], split=job.split, limit=job.limit)
        return patiently(f"publish {job.label} on {task}", lambda: publish(measured))

    outcome = made_or_found(store, recipe.id, make, kind=EvaluationContent, reuse=reuse)
    content = outcome.manifest.content
    assert isinstance(content, EvaluationContent)
    return EvaluationResult.of(outcome, watch, task=task, metrics=content.metrics, items=content.items)


def _folder_of(model: Checkpoint | Delta, job: EvaluationJob, stack: ExitStack) -> Path:
    """Return a model's folder; one for a delta or a remote model is gone once the stack is closed."""
    if isinstance(model, Checkpoint):
        return stack.enter_context(folder_of(model))
    assert job.base is not None
    folder = stack.enter_context(scratch_folder()) / "model"
    reconstruct(model, job.base, folder)
    return folder
