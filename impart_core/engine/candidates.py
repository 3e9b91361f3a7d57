"""Candidates of a search scored, each in a stage of its own, and the store as the ledger of their scores."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Self

from pydantic import Field

from impart_core.artifacts.trial import TrialContent, is_failure, read_scores, settles, trial_recipe
from impart_core.base.device_memory import is_out_of_device_memory
from impart_core.base.errors import (
    ConfigError,
    InfeasibleBudgetError,
    MismatchError,
    TensorValueError,
    UnknownNameError,
)
from impart_core.base.numerics import one_thread_per_kernel
from impart_core.base.retry import NETWORK, patiently
from impart_core.base.settings import Frozen
from impart_core.engine.executor import Executor, stage
from impart_core.engine.needs import candidate_need
from impart_core.engine.references import Run, TrialJob
from impart_core.engine.template import Model, Template
from impart_core.engine.trial import score_model
from impart_core.evaluation.items import ItemRange, pieces
from impart_core.evaluation.options import MeasureOptions
from impart_core.evaluation.result import Measure, RunCode, Split
from impart_core.searching.ledger import Answer, Failure, Ledger, Question, Score
from impart_core.searching.space import Candidate
from impart_core.store.manifest import Manifest
from impart_core.store.pins import Pin, pin

# What a candidate itself can be the reason of, when its model is made.
_OF_THE_CANDIDATE = (ConfigError, UnknownNameError, InfeasibleBudgetError, MismatchError, TensorValueError)


@dataclass(frozen=True)
class Measuring:
    """How the models of a search are scored.

    Attributes:
        measures: the tasks' own metrics, `answer_loss`, or both.
        options: how lm-eval measures.
        code: whether tasks may run code that the model writes.
        bytes: whether the bytes of the models are counted.
    """

    measures: tuple[Measure, ...]
    options: MeasureOptions = field(default_factory=MeasureOptions)
    code: RunCode = "never"
    bytes: bool = False


@dataclass(frozen=True)
class CandidateJob:
    """A candidate to make and to score.

    Attributes:
        run: the run; its store holds the trials.
        label: what people call it.
        template: what it is made by.
        filled: the filled template.
        tasks: which tasks.
        items: which items of each.
        measuring: how.
        split: of which split.
    """

    run: Run
    label: str
    template: Template
    filled: Mapping[str, Any]
    tasks: tuple[str, ...]
    items: ItemRange
    measuring: Measuring
    split: Split = "validation"


class CandidateResult(Frozen):
    """The trials of a candidate by task and measure, which tasks it was measured on, its delta; or why it failed."""

    trials: dict[str, dict[str, tuple[str, ...]]] = Field(default_factory=dict)
    measured: frozenset[str] = frozenset()
    delta: str | None = None
    failure: str | None = None
    seconds: float = 0.0


@stage("try candidate", "try {job.label}", NETWORK, candidate_need)
def try_candidate(job: CandidateJob) -> CandidateResult:
    """Make a candidate's model, unless the store holds it, and score it on what the store holds no scores of.

    Raises:
        ImpartError: for a reason that is not the candidate's: a store, a network, a device.
    """
    watch = job.run.watch()
    with ExitStack() as stack:
        try:
            model = stack.enter_context(job.template.model_of(job.filled, job.run))
        except Exception as error:
            if isinstance(error, _OF_THE_CANDIDATE) or is_out_of_device_memory(error):
                return CandidateResult(failure=str(error) or type(error).__name__, seconds=watch.seconds)
            raise
        return score(trial_job(job.run, job.label, job.tasks, job.items, job.split, model), job.measuring)


def trial_job(run: Run, label: str, tasks: tuple[str, ...], items: ItemRange, split: Split, model: Model) -> TrialJob:
    """Return the job of scoring a model; arguments as in `TrialJob`."""
    made = {one.name: getattr(model, one.name) for one in fields(model)}
    return TrialJob(run, label, tasks, items, split=split, **made)


def score(job: TrialJob, how: Measuring) -> CandidateResult:
    """Score a model by all measures of a search, on one core where that is a CPU.

    With more, the last bits of a score would depend on how many candidates are worked on beside it.
    """
    trials: dict[str, dict[str, tuple[str, ...]]] = {task: {} for task in job.tasks}
    measured, seconds = set[str](), 0.0
    for measure in how.measures:
        with one_thread_per_kernel():
            result = score_model(replace(job, measure=measure, measuring=how.options, code=how.code))
        seconds += result.seconds
        if result.failure is not None:
            return CandidateResult(failure=result.failure, delta=job.delta, seconds=seconds)
        for one in result.scores:
            trials[one.task][measure] = one.trials
            measured |= {one.task} if one.measured else set()
    return CandidateResult(trials=trials, measured=frozenset(measured), delta=job.delta, seconds=seconds)


class StoreLedger(Ledger):
    """The trials of a store.

    Attributes:
        trials: ids of all trials that were asked for, in order.
    """

    def __init__(self, run: Run, template: Template, measuring: Measuring, executor: Executor) -> None:
        """Take what candidates are made by, how they are scored, and what runs the stages."""
        super().__init__()
        self._run, self._template, self._how, self._executor = run, template, measuring, executor
        self._store = run.open_store()
        self._inputs: dict[str, dict[str, object] | None] = {}
        self.trials: dict[str, None] = {}
        self._deltas: dict[str, None] = {}
        self._bytes: dict[str, int] = {}
        self._hold: Pin | None = None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let the collector have what nothing else keeps."""
        if self._hold:
            self._hold.release()

    def find(self, candidate: Candidate, task: str, start: int, stop: int) -> Score | Failure | None:
        """Return the score that the store's trials have, None where one of them is missing."""
        return patiently("look for trials", lambda: self._find(candidate, task, (start, stop)))

    def evaluate(self, questions: Sequence[Question]) -> Sequence[Answer]:
        """Make and score candidates, each in a stage, all at once."""
        jobs = [
            CandidateJob(
                self._run,
                question.candidate.digest[:12],
                self._template,
                question.candidate.filled,
                question.tasks,
                (question.start, question.stop),
                self._how,
            )
            for question in questions
        ]
        pending = [self._executor.submit(try_candidate, job) for job in jobs]
        results = [one.result() for one in pending]
        self._keep(results)
        return [self._answer(question, result) for question, result in zip(questions, results, strict=True)]

    def _keep(self, results: Sequence[CandidateResult]) -> None:
        """Pin what was made, with all before it: nothing else keeps it until the study is published."""
        for result in results:
            self._deltas |= dict.fromkeys([result.delta] if result.delta else [])
            self.trials |= dict.fromkeys(one for of in result.trials.values() for ids in of.values() for one in ids)
        before, ids = self._hold, [*self.trials, *self._deltas]
        self._hold = patiently("pin what was made", lambda: pin(self._store, ids))
        if before:
            before.release()

    def _answer(self, question: Question, result: CandidateResult) -> Answer:
        if result.failure is not None:
            return Failure(why=result.failure, seconds=round(result.seconds, 3))
        answer = {}
        for task, trials in result.trials.items():
            score = patiently("read scores", partial(self._read, question.candidate, trials))
            answer[task] = score.model_copy(update={"found": task not in result.measured})
        return answer

    def _read(self, candidate: Candidate, trials: Mapping[str, Sequence[str]]) -> Score:
        return self._score(candidate, [[self._store.manifest(one) for one in ids] for ids in trials.values()])

    def _find(self, candidate: Candidate, task: str, items: ItemRange) -> Score | Failure | None:
        trust, inputs = self._run.trust, self._inputs_of(candidate)
        if inputs is None or trust.refresh_from is not None:
            return None
        trials: list[list[Manifest]] = []
        for measure in self._how.measures:
            trials.append([])
            for piece in pieces(items):
                recipe = trial_recipe(inputs, task, piece, "validation", measure, self._how.options)
                found = self._store.examine(
                    recipe.id, reread=trust.reread, imported=trust.imported, kind=TrialContent
                ).manifest
                if found is None or not settles(found):
                    return None
                if is_failure(found):
                    assert isinstance(found.content, TrialContent)
                    return Failure(why=found.content.failure or "", seconds=found.provenance.seconds)
                trials[-1].append(found)
        score = self._score(candidate, trials)
        return None if self._how.bytes and score.bytes is None else score  # its model is gone: it is made again

    def _inputs_of(self, candidate: Candidate) -> dict[str, object] | None:
        if candidate.digest not in self._inputs:
            try:
                self._inputs[candidate.digest] = self._template.inputs(candidate.filled)
            except _OF_THE_CANDIDATE:  # the stage that makes it says so
                self._inputs[candidate.digest] = None
        return self._inputs[candidate.digest]

    def _bytes_of(self, candidate: Candidate, made: Sequence[str]) -> int | None:
        if candidate.digest not in self._bytes:
            counted = self._template.bytes_of(candidate.filled, made, self._store)
            if counted is None:
                return None
            self._bytes[candidate.digest] = counted
        return self._bytes[candidate.digest]

    def _score(self, candidate: Candidate, trials: Sequence[Sequence[Manifest]]) -> Score:
        """Return the score that trials of each measure hold together."""
        metrics: dict[str, tuple[float, ...]] = {}
        for of_measure in trials:
            metrics |= read_scores(self._store, [trial.id for trial in of_measure]).scores
            self.trials |= dict.fromkeys(trial.id for trial in of_measure)
        return Score(
            metrics=metrics,
            bytes=self._bytes_of(candidate, trials[0][0].parents) if self._how.bytes else None,
            seconds=round(sum(trial.provenance.seconds for each in trials for trial in each), 3),
        )
