"""Measuring a model by lm-evaluation-harness: a delta is rebuilt once, whatever the number of its tasks."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from impart_core.apply.dense import reconstruct
from impart_core.apply.reader import require_base
from impart_core.artifacts.delta import Delta, open_delta
from impart_core.artifacts.evaluation import EvaluationContent, evaluation_recipe, publish_evaluation
from impart_core.base.errors import ConfigError
from impart_core.base.files import scratch_folder
from impart_core.base.numerics import resolve_device
from impart_core.base.retry import GPU, patiently, recording
from impart_core.checkpoint.index import Checkpoint, open_checkpoint
from impart_core.engine.executor import Executor, stage
from impart_core.engine.preflight import open_side, require_folder
from impart_core.engine.references import EvaluationJob, EvaluationResult, Made, Run
from impart_core.engine.requests import EvaluateRequest
from impart_core.evaluation import Evaluation, Evaluator, check_tasks
from impart_core.store.catalog import entry_of, note
from impart_core.store.manifest import Manifest
from impart_core.store.names import resolve
from impart_core.store.pins import pinned
from impart_core.store.publish import Reuse, made_or_found
from impart_core.store.store import Store

Progress = Callable[[str, int, int, str], None]


@dataclass(frozen=True)
class Measurable:
    """A model that can be measured: its folder or the delta's artifact id, and the base of a delta, opened."""

    model: str
    base: Checkpoint | None = None


def check_evaluate(request: EvaluateRequest) -> Measurable:
    """Check a request without loading a model; raise an `ImpartError` that says what to change."""
    resolve_device(request.device)
    if request.limit is not None and request.limit < 1:
        raise ConfigError(f"The limit is {request.limit}; it must be at least 1 item.")
    if not request.tasks:
        raise ConfigError("No task is named. Give at least one with --tasks.")
    if request.base is None:
        require_folder(request.model)
    check_tasks(request.tasks)
    store = Store(request.store)
    store.require_writable()
    if request.base is None:
        open_checkpoint(request.model)
        return Measurable(request.model)
    delta, base = open_delta(store, resolve(store, request.model)), open_side(request.base)
    require_base(delta, base)
    return Measurable(delta.manifest.id, base)


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
            tasks=request.tasks,
            split=request.split,
            limit=request.limit,
        )
        return evaluate_all([job], executor, progress)


def evaluate_all(
    jobs: "list[EvaluationJob]", executor: Executor, progress: Progress | None = None
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
    model = open_delta(store, job.model) if job.base else open_checkpoint(job.model)
    with ExitStack() as stack:
        loaded = _Loaded(model, job, stack)
        return tuple(_measure(job, task, store, loaded) for task in job.tasks)


@dataclass
class _Loaded:
    """A model that is made and loaded when it is first asked for, and held until the stack is closed."""

    model: Checkpoint | Delta
    job: EvaluationJob
    stack: ExitStack
    _evaluator: Evaluator | None = None

    @property
    def parents(self) -> list[str]:
        """The delta, where it is one."""
        return [self.model.manifest.id] if isinstance(self.model, Delta) else []

    def evaluator(self) -> Evaluator:
        """Return what measures it."""
        if self._evaluator is None:
            folder = self.stack.enter_context(_folder_of(self.model, self.job))
            self._evaluator = Evaluator(folder, str(resolve_device(self.job.run.device)))
        return self._evaluator


def _measure(job: EvaluationJob, task: str, store: Store, loaded: _Loaded) -> EvaluationResult:
    watch = job.run.watch(**({"base": job.base.location} if job.base else {"checkpoint": job.model}))
    recipe = evaluation_recipe(loaded.model, task, job.split, job.limit)
    reuse = Reuse(job.run.trust.reread, job.run.trust.refresh_from is not None)

    def publish(measured: Evaluation) -> Manifest:
        with pinned(store, [recipe.id]):
            manifest = publish_evaluation(store, recipe, measured, loaded.parents, watch, reuse=reuse)
            note(store, [entry_of(manifest)])
            return manifest

    def make() -> Manifest:
        measured = loaded.evaluator().measure([task], split=job.split, limit=job.limit)
        return patiently(f"publish {job.label} on {task}", lambda: publish(measured))

    outcome = made_or_found(store, recipe.id, make, kind=EvaluationContent, reuse=reuse)
    content = outcome.manifest.content
    assert isinstance(content, EvaluationContent)
    measured = {"task": task, "metrics": content.metrics, "items": content.items}
    return EvaluationResult.model_validate({**Made.fields_of(outcome, watch), **measured})


@contextmanager
def _folder_of(model: Checkpoint | Delta, job: EvaluationJob) -> Iterator[Path]:
    if isinstance(model, Checkpoint):
        yield Path(model.location)
        return
    assert job.base is not None
    with scratch_folder() as scratch:
        reconstruct(model, job.base, scratch / "model")
        yield scratch / "model"
