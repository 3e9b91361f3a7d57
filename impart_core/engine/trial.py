"""Scoring a model item by item on growing ranges: what the store holds is taken from there, whoever measured it."""

from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

from impart_core.artifacts.delta import Delta, open_delta
from impart_core.artifacts.evaluation import model_inputs
from impart_core.artifacts.trial import (
    TrialContent,
    is_failure,
    publish_failure,
    publish_trial,
    settles,
    trial_recipe,
)
from impart_core.base.device_memory import is_out_of_device_memory
from impart_core.base.errors import InfeasibleBudgetError, MismatchError, ModelError, TensorValueError
from impart_core.base.numerics import resolve_device
from impart_core.base.retry import GPU, patiently
from impart_core.checkpoint.index import Checkpoint
from impart_core.engine.evaluate import failure_of, model_folder
from impart_core.engine.executor import stage
from impart_core.engine.references import TaskScores, TrialJob, TrialResult
from impart_core.evaluation.harness import Evaluator, check_items, check_request
from impart_core.evaluation.item_scores import pooled
from impart_core.evaluation.items import ItemRange, pieces
from impart_core.evaluation.result import ItemScores, Metric
from impart_core.store.catalog import entry_of, note
from impart_core.store.claims import claimed
from impart_core.store.manifest import Manifest
from impart_core.store.pins import pin
from impart_core.store.provenance import Stopwatch
from impart_core.store.publish import Reuse
from impart_core.store.recipe import Recipe
from impart_core.store.store import Store

# What a model itself can be the reason of. Any other error is the request's, or that of the surroundings.
_OF_THE_MODEL = (ModelError, TensorValueError, MismatchError, InfeasibleBudgetError)
_MAY_PASS = (ImportError, MemoryError, OSError)  # as the cause of a `ModelError`


@stage("score model", "score {job.label}", GPU)
def score_model(job: TrialJob) -> TrialResult:
    """Score one model on its tasks, and publish the scores of each piece of the range that the store does not hold.

    The model is made and loaded for the first piece that is missing. One that fails is measured no further.

    Raises:
        ImpartError: for a reason that is not the model's: what is asked for, a store, a network, a device.
    """
    with ExitStack() as stack:
        return _Scorer(job, stack).result()


class _Scorer:
    """One model's job: its trials as they are found and made."""

    def __init__(self, job: TrialJob, stack: ExitStack) -> None:
        self._job, self._stack = job, stack
        self._store = job.run.open_store()
        self._source = Store(job.source) if job.source else self._store
        self._watch = self._started()
        self._made: list[Manifest] = []

    def _started(self) -> Stopwatch:
        """Start measuring a piece of its work."""
        job = self._job
        place = {"checkpoint": job.checkpoint.location} if job.checkpoint else {}
        return job.run.watch(**place, **({"base": job.base.location} if job.base else {}))

    def result(self) -> TrialResult:
        """Find or make all trials."""
        job, scores = self._job, list[TaskScores]()
        check_request(job.tasks, None, job.measuring, job.code)
        try:
            for task in job.tasks:
                before = len(self._made)
                trials = []
                for piece in pieces(job.items):
                    trials.append(self._trial(task, piece))
                    if is_failure(trials[-1]):
                        return self._failed(scores, trials[-1])
                scores.append(_scores_of(job, task, trials, self._made[before:]))
        except _OF_THE_MODEL as error:  # it has no id
            return TrialResult(
                scores=tuple(scores), failure=str(error), may_pass=_may_pass(error), seconds=self._watch.seconds
            )
        finally:
            if self._made:
                patiently(f"enter the trials of {job.label}", lambda: note(self._store, map(entry_of, self._made)))
        return TrialResult(scores=tuple(scores), seconds=self._watch.seconds)

    def _failed(self, scores: list[TaskScores], trial: Manifest) -> TrialResult:
        assert isinstance(trial.content, TrialContent)
        return TrialResult(
            scores=tuple(scores),
            failure=trial.content.failure,
            may_pass=trial.content.may_pass,
            failed_trial=trial.id,
            seconds=self._watch.seconds,
        )

    @cached_property
    def _model(self) -> Checkpoint | Delta:
        if self._job.checkpoint is not None:
            return self._job.checkpoint
        assert self._job.delta is not None, "a job names a checkpoint or a delta"
        return open_delta(self._source, self._job.delta)

    @cached_property
    def _inputs(self) -> dict[str, object]:
        return dict(self._job.inputs) if self._job.inputs else model_inputs(self._model)

    @cached_property
    def _folder(self) -> Path:
        return model_folder(self._model, self._job.base, self._stack)

    @cached_property
    def _evaluator(self) -> Evaluator:
        return Evaluator(self._folder, str(resolve_device(self._job.run.device)), self._job.measuring, self._job.code)

    def _trial(self, task: str, items: ItemRange) -> Manifest:
        """Return one trial, from a store or made."""
        job = self._job
        recipe = trial_recipe(self._inputs, task, items, job.split, job.measure, job.measuring)
        if (found := self._found(recipe)) is not None:
            return found
        check_items(task, items, job.split, job.measure, job.measuring, job.code)
        with claimed(self._store, recipe.id):
            if (found := self._found(recipe)) is not None:  # another search was at it meanwhile
                return found
            trial = self._make(recipe, task, items)
        self._made.append(trial)
        return trial

    def _found(self, recipe: Recipe) -> Manifest | None:
        """Return a trial that a store holds and that need not be made again."""
        trust = self._job.run.trust
        if trust.refresh_from is not None:
            return None
        for store in dict.fromkeys((self._store, self._source)):
            found = store.examine(recipe.id, reread=trust.reread, imported=trust.imported, kind=TrialContent)
            if found.manifest is not None and settles(found.manifest):
                return found.manifest
        return None

    def _make(self, recipe: Recipe, task: str, items: ItemRange) -> Manifest:
        job, watch = self._job, self._started()
        parents = (*((job.delta,) if job.delta else ()), *job.parents)
        reuse = Reuse(job.run.trust.reread, job.run.trust.refresh_from is not None, job.run.trust.imported)
        try:
            scores = patiently(f"score {job.label} on {task}", lambda: self._measure(task, items), GPU)
        except Exception as error:
            if not (isinstance(error, _OF_THE_MODEL) or is_out_of_device_memory(error)):
                raise
            why, may_pass = self._told(error), _may_pass(error)

            def publish() -> Manifest:
                return publish_failure(self._store, recipe, why, parents, watch, may_pass=may_pass)
        else:

            def publish() -> Manifest:
                return publish_trial(self._store, recipe, scores, parents, watch, reuse=reuse)

        with pin(self._store, [recipe.id]):
            return patiently(f"publish the trial of {job.label} on {task}", publish)

    def _told(self, error: Exception) -> str:
        folder = vars(self).get("_folder")
        return failure_of(error, folder, self._job.label) if folder else str(error)

    def _measure(self, task: str, items: ItemRange) -> ItemScores:
        try:
            return self._evaluator.measure_items(task, items, split=self._job.split, measure=self._job.measure)
        except Exception as error:
            if is_out_of_device_memory(error) and "_evaluator" in vars(self):
                self._evaluator.unload()  # before it is tried again, others may need what the model takes
            raise


def _may_pass(error: BaseException) -> bool:
    """Return whether the reason why a model failed may be gone another time."""
    return is_out_of_device_memory(error) or isinstance(error.__cause__, _MAY_PASS)


def _scores_of(job: TrialJob, task: str, trials: list[Manifest], made: list[Manifest]) -> TaskScores:
    """Sum up the trials of a task."""
    contents = [trial.content for trial in trials if isinstance(trial.content, TrialContent)]
    metrics = {}
    for name in contents[0].metrics:
        parts = [(one.items, Metric(value=one.metrics[name][0], stderr=one.metrics[name][1])) for one in contents]
        mean = pooled(parts)
        metrics[name] = (mean.value, mean.stderr)
    return TaskScores(
        task=task,
        items=job.items,
        trials=tuple(trial.id for trial in trials),
        metrics=metrics,
        measured=sum(trial.content.items for trial in made if isinstance(trial.content, TrialContent)),
    )
