"""Measuring a model by lm-evaluation-harness: a delta is rebuilt once, whatever the number of its tasks."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from impart_core.apply.dense import reconstruct
from impart_core.artifacts.delta import Delta, open_delta
from impart_core.artifacts.evaluation import EvaluationContent, evaluation_recipe, publish_evaluation
from impart_core.base.errors import (
    ArtifactNotFoundError,
    CheckpointError,
    ConfigError,
    ModelError,
    StoreError,
    StoreUnreachableError,
    UnknownNameError,
)
from impart_core.base.files import scratch_folder
from impart_core.base.numerics import resolve_device
from impart_core.base.retry import GPU, patiently, recording
from impart_core.checkpoint.adapter import ADAPTER_CONFIG
from impart_core.checkpoint.index import Checkpoint, open_checkpoint
from impart_core.checkpoint.location import is_remote
from impart_core.checkpoint.spool import spooling
from impart_core.checkpoint.writer import folder_of
from impart_core.engine.bases import base_of
from impart_core.engine.executor import Executor, Progress, stage
from impart_core.engine.needs import evaluation_need
from impart_core.engine.preflight import open_side
from impart_core.engine.references import EvaluationJob, EvaluationResult, Run
from impart_core.engine.requests import EvaluateRequest, absolute
from impart_core.evaluation.catalogue import named_tasks
from impart_core.evaluation.harness import Evaluator, check_request
from impart_core.evaluation.options import MeasureOptions
from impart_core.evaluation.result import Evaluation
from impart_core.storage.open import require_plain_url
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
        checkpoint: the model, opened, where it is a checkpoint, an adapter's merged into its base; None for a delta.
        base: the base of a delta, opened, else None.
        tasks: lm-eval's names of the tasks.
        measuring: how it is measured, with the folders of all tasks.
    """

    model: str
    checkpoint: Checkpoint | None
    base: Checkpoint | None
    tasks: tuple[str, ...]
    measuring: MeasureOptions


def check_evaluate(request: EvaluateRequest) -> Measurable:
    """Check a request without loading a model; raise an `ImpartError` that says what to change."""
    resolve_device(request.device)
    if "://" in request.model:
        require_plain_url(request.model, "model", CheckpointError)
    tasks, measuring = named_tasks(request.tasks, request.measuring)
    check_request(tasks, request.limit, measuring, request.code)
    store = Store(request.store)
    _require_writable(request)
    delta = _delta_of(request, store)
    if delta is not None:
        return Measurable(delta.manifest.id, None, base_of(delta, request.base), tasks, measuring)
    place = absolute(request.model)
    if request.base is None:
        checkpoint = open_checkpoint(place).with_files_at_hand()
    else:
        checkpoint = open_side(place, open_side(request.base))
        if checkpoint.adapter is None:
            raise ConfigError(f"{place} is a whole model, which needs no base. Leave out --base.")
    return Measurable(place, checkpoint, None, tasks, measuring)


def _require_writable(request: EvaluateRequest) -> None:
    try:
        Store(request.results_store or request.store).require_writable()
    except StoreError as error:
        if request.results_store or isinstance(error, StoreUnreachableError):
            raise
        raise type(error)(f"{error} Results can be written to another store: --results-store.") from error


def _delta_of(request: EvaluateRequest, store: Store) -> Delta | None:
    """Return the delta that is to be measured, None where the model is a checkpoint or an adapter."""
    if request.base is None and (is_remote(request.model) or Path(request.model).expanduser().exists()):
        return None
    if request.base is not None and _is_place(request.model):
        return None
    try:
        artifact = resolve(store, request.model)
    except (ArtifactNotFoundError, UnknownNameError) as error:
        if request.base is not None:
            raise
        raise CheckpointError(f"{request.model} does not exist, and no delta has this name or id. {error}") from error
    return open_delta(store, artifact)


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
    with recording(), spooling():
        checked = checked or patiently("check the request", lambda: check_evaluate(request))
        job = EvaluationJob(
            run=Run(request.results_store or request.store, request.device, request.trust, id=run_id),
            label=Path(request.model).name,
            model=checked.model,
            base=checked.base,
            checkpoint=checked.checkpoint,
            tasks=checked.tasks,
            measuring=checked.measuring,
            split=request.split,
            limit=request.limit,
            code=request.code,
            source=request.store if request.results_store else None,
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


@stage("evaluate model", "evaluate {job.label}", GPU, evaluation_need)
def evaluate_model(job: EvaluationJob) -> tuple[EvaluationResult, ...]:
    """Evaluate one model on its tasks and publish the metrics of each, unless the store holds them already.

    A delta is rebuilt into scratch, and the model loaded, for the first task whose metrics are not there.
    """
    store = job.run.open_store()
    source = Store(job.source) if job.source else store
    model = job.checkpoint or open_delta(source, job.model)
    with ExitStack() as stack:

        @cache
        def evaluator() -> Evaluator:
            device = str(resolve_device(job.run.device))
            return Evaluator(model_folder(model, job.base, stack), device, job.measuring, job.code)

        return tuple(_measure(job, model, task, (store, source), evaluator) for task in job.tasks)


def _measure(
    job: EvaluationJob,
    model: Checkpoint | Delta,
    task: str,
    stores: tuple[Store, Store],
    evaluator: Callable[[], Evaluator],
) -> EvaluationResult:
    """Measure a model on one task, unless the store of the results or that of the delta holds the metrics already."""
    store, source = stores
    elsewhere = {"delta": source.url} if job.source else {}
    watch = job.run.watch(**({"base": job.base.location, **elsewhere} if job.base else {"checkpoint": job.model}))
    recipe = evaluation_recipe(model, task, job.split, job.limit, job.measuring)
    trust = job.run.trust
    reuse = Reuse(trust.reread, trust.refresh_from is not None, trust.imported)
    parents = [model.manifest.id] if isinstance(model, Delta) else []

    def publish(measured: Evaluation) -> Manifest:
        with pin(store, [recipe.id]):
            manifest = publish_evaluation(store, recipe, measured, parents, watch, reuse=reuse)
            note(store, [entry_of(manifest)])
            return manifest

    def make() -> Manifest:
        measuring = evaluator()
        try:
            measured = measuring.measure([task], split=job.split, limit=job.limit)
        except ModelError as error:
            if isinstance(model, Delta) or is_remote(job.model):
                error.args = (failure_of(error, measuring.folder, job.label),)
            raise
        return patiently(f"publish {job.label} on {task}", lambda: publish(measured))

    here = store.examine(recipe.id, reread=reuse.reread, imported=reuse.imported, kind=EvaluationContent)
    looked_at = store if here.manifest else source
    outcome = made_or_found(looked_at, recipe.id, make, kind=EvaluationContent, reuse=reuse)
    content = outcome.manifest.content
    assert isinstance(content, EvaluationContent)
    return EvaluationResult.of(outcome, watch, task=task, metrics=content.metrics, items=content.items)


def failure_of(error: Exception, folder: Path, name: str) -> str:
    """Return what a model failed by, with its name in the place of a folder that may be gone."""
    return str(error).replace(str(folder), name)


def model_folder(model: Checkpoint | Delta, base: Checkpoint | None, stack: ExitStack) -> Path:
    """Return a model's folder; one for a delta or a remote model is gone once the stack is closed."""
    if isinstance(model, Checkpoint):
        return stack.enter_context(folder_of(model))
    assert base is not None
    folder = stack.enter_context(scratch_folder()) / "model"
    reconstruct(model, base, folder)
    return folder
