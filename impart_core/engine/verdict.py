"""The winner of a search scored once on the test split, beside the default, the base and the experts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from impart_core.artifacts.study import Standing, Verdict
from impart_core.artifacts.trial import read_scores
from impart_core.base.errors import ModelError
from impart_core.base.retry import NETWORK, patiently
from impart_core.engine.candidates import CandidateJob, CandidateResult, Measuring, score, trial_job, try_candidate
from impart_core.engine.executor import Executor, stage
from impart_core.engine.needs import reference_need
from impart_core.engine.references import Run, TrialJob
from impart_core.engine.template import Model, Template
from impart_core.evaluation.item_scores import mean_of
from impart_core.evaluation.result import Split
from impart_core.searching.file import SearchFile
from impart_core.searching.objective import BYTES, Objective, value_of
from impart_core.searching.paired import difference
from impart_core.searching.space import Candidate
from impart_core.store.store import Store

Values = dict[str, dict[str, np.ndarray]]  # by task and metric, the value of each item
_OWN_NAMES = ("winner", "default", "base")  # what an expert's folder may be called, too


@dataclass(frozen=True)
class ReferenceJob:
    """A model that no candidate is, to score by all measures of a search: the base, or an expert."""

    trial: TrialJob
    measuring: Measuring


@stage("score reference", "score {job.trial.label}", NETWORK, reference_need)
def score_reference(job: ReferenceJob) -> CandidateResult:
    """Score the base or an expert on what the store holds no scores of."""
    return score(job.trial, job.measuring)


class Judge:
    """Scores models on whole splits, and compares them.

    Attributes:
        trials: ids of all trials that it read.
    """

    def __init__(
        self, file: SearchFile, template: Template, run: Run, measuring: Measuring, executor: Executor
    ) -> None:
        """Take what was searched, and how its models are scored."""
        self._file, self._template, self._run = file, template, run
        self._how, self._executor, self._store = measuring, executor, Store(run.store)
        self._objective: Objective = next(one for one in file.objectives if one.of != BYTES)
        self._experts = {
            f"{name} (model)" if name in _OWN_NAMES else name: model for name, model in template.experts.items()
        }
        self.trials: dict[str, None] = {}

    def verdict(self, winner: Candidate, default: Candidate, validation: int, test: Mapping[str, int]) -> Verdict:
        """Score the winner and what it is held against.

        Args:
            winner: the best candidate.
            default: the default candidate.
            validation: number of validation items of each task that complete trials were scored on.
            test: number of test items of each task.

        Raises:
            ModelError: one of the models fails on the test split.
        """
        others = {"base": Model(checkpoint=self._template.base), **self._experts}
        known = dict.fromkeys(self._file.tasks, validation)
        seen = {name: self._of_reference(name, model, "validation", known) for name, model in others.items()}
        expert = max(self._experts, key=lambda name: self._upward(seen[name]))
        unseen = {"winner": self._of_candidate("winner", winner, test)}
        unseen["default"] = self._of_candidate("default", default, test)
        unseen |= {name: self._of_reference(name, model, "test", test) for name, model in others.items()}
        margins = {
            name: difference(self._contributions(unseen["winner"]), self._contributions(values))
            for name, values in unseen.items()
            if name != "winner"
        }
        return Verdict(
            validation={name: self._standing(values) for name, values in seen.items()},
            test={name: self._standing(values) for name, values in unseen.items()},
            margins=margins,
            expert=expert,
        )

    def _of_candidate(self, label: str, candidate: Candidate, items: Mapping[str, int]) -> Values:
        values: Values = {}
        for count, tasks in _by_count(items):
            job = CandidateJob(
                self._run, label, self._template, candidate.filled, tasks, (0, count), self._how, split="test"
            )
            result = self._executor.run(try_candidate, job)
            values |= self._read(label, result)
        return values

    def _of_reference(self, label: str, model: Model, split: Split, items: Mapping[str, int]) -> Values:
        values: Values = {}
        for count, tasks in _by_count(items):
            job = ReferenceJob(trial_job(self._run, label, tasks, (0, count), split, model), self._how)
            values |= self._read(label, self._executor.run(score_reference, job))
        return values

    def _read(self, label: str, result: CandidateResult) -> Values:
        if result.failure is not None:
            raise ModelError(f"All trials are done and kept, but {label} cannot be scored: {result.failure}")
        values: Values = {}
        for task, trials in result.trials.items():
            for ids in trials.values():
                self.trials |= dict.fromkeys(ids)
                scores = patiently("read scores", partial(read_scores, self._store, ids)).scores
                values.setdefault(task, {}).update({name: np.asarray(each) for name, each in scores.items()})
        return values

    def _contributions(self, values: Values) -> dict[str, np.ndarray]:
        return self._objective.contributions(values, self._file.tasks)

    def _upward(self, values: Values) -> float:
        return self._file.upward(self._objective, value_of(self._contributions(values)))

    def _standing(self, values: Values) -> Standing:
        told = difference(self._contributions(values), {})
        metrics = {
            task: {
                name: (mean_of(each.tolist()).value, mean_of(each.tolist()).stderr) for name, each in metrics.items()
            }
            for task, metrics in values.items()
        }
        items = {task: len(next(iter(metrics.values()))) for task, metrics in values.items()}
        return Standing(metrics=metrics, value=(told.value, told.stderr), items=items)


def _by_count(items: Mapping[str, int]) -> Iterable[tuple[int, tuple[str, ...]]]:
    """Give tasks with as many items together, so that a model is loaded once for all of them."""
    for count in dict.fromkeys(items.values()):
        yield count, tuple(task for task, number in items.items() if number == count)
