"""A search whose candidates are scored by a formula with noise of a known size, and a best candidate that is known."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from impart_core.searching.file import SearchFile, parse_search
from impart_core.searching.ledger import Answer, Failure, Ledger, Question, Score
from impart_core.searching.space import Candidate

BEST = 0.7
Recorded = dict[tuple[str, str, int, int], Score | Failure]


class Killed(BaseException):
    """The process dies."""


def quality(values: Mapping[str, Any]) -> float:
    """Return minus the squared distance of all numbers from the best one."""
    return -float(sum((value - BEST) ** 2 for value in values.values() if isinstance(value, int | float)))


class Synthetic(Ledger):
    """Scores are a candidate's quality, plus an item's difficulty, which is the same for all, plus noise.

    Attributes:
        recorded: the scores, which another ledger may share.
        evaluated: what was scored, in order.
    """

    def __init__(
        self,
        recorded: Recorded | None = None,
        *,
        noise: float = 0.1,
        dies_at: int | None = None,
        fails: Callable[[Mapping[str, Any]], bool] = lambda values: False,
        easier: float = 0.0,
    ) -> None:
        super().__init__()
        self.recorded: Recorded = {} if recorded is None else recorded
        self.evaluated: list[tuple[str, str, int, int]] = []
        self._noise, self._dies_at, self._fails, self._easier = noise, dies_at, fails, easier

    def find(self, candidate: Candidate, task: str, start: int, stop: int) -> Score | Failure | None:
        return self.recorded.get((candidate.digest, task, start, stop))

    def evaluate(self, questions: Sequence[Question]) -> Sequence[Answer]:
        return [self._answer(question) for question in questions]

    def _answer(self, question: Question) -> Answer:
        scores: dict[str, Score] = {}
        for task in question.tasks:
            key = (question.candidate.digest, task, question.start, question.stop)
            if self._dies_at is not None and len(self.evaluated) == self._dies_at:
                raise Killed
            self.evaluated.append(key)
            if self._fails(question.candidate.values):
                self.recorded[key] = failure = Failure(why="out of memory", seconds=1.0)
                return failure
            self.recorded[key] = scores[task] = self._score(*key, question.candidate.values)
        return scores

    def _score(self, digest: str, task: str, start: int, stop: int, values: Mapping[str, Any]) -> Score:
        count = stop - start
        difficulty = np.random.default_rng([start, len(task)]).normal(size=count)
        noise = np.random.default_rng([int(digest[:12], 16), start, len(task)]).normal(size=count)
        own = quality(values) + difficulty + self._noise * noise + (self._easier if start == 0 else 0.0)
        size = 1 + int(1000 * sum(value for value in values.values() if isinstance(value, int | float)))
        return Score(metrics={"score": tuple(own.tolist())}, bytes=size, seconds=1.0)


def search(**settings: Any) -> SearchFile:
    """Return a search over two numbers between 0 and 1.5 on one task, with other settings as given."""
    usual: dict[str, Any] = {
        "compress": {"x": {"range": [0, 1.5]}, "y": {"range": [0, 1.5]}},
        "tasks": ["task"],
        "sampler": "random",
        "budget": {"trials": 20},
        "items": [20, 80],
    }
    return parse_search({**usual, **settings})
