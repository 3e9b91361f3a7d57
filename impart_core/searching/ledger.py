"""The ledger of a search: what was measured of which candidate on which items, asked before anything is evaluated."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import ConfigDict

from impart_core.base.settings import Frozen
from impart_core.searching.space import Candidate


class Score(Frozen):
    """What was measured of a candidate on some items of a task.

    Attributes:
        metrics: for each metric the value of each item, in the order of the items.
        bytes: what the files of the candidate's model take up in a store; None: nobody counted.
        seconds: how long it took to make the model and to score it.
        found: whether it was there when it was to be evaluated, since another search did so meanwhile.
    """

    model_config = ConfigDict(allow_inf_nan=True)  # that it is not finite is said of the candidate; see `Ledger.ask`

    metrics: dict[str, tuple[float, ...]]
    bytes: int | None = None
    seconds: float = 0.0
    found: bool = False


class Failure(Frozen):
    """A candidate that could not be made or scored, and why."""

    why: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Question:
    """Items of some tasks that a candidate is to be scored on.

    Attributes:
        candidate: the candidate.
        tasks: names of the tasks.
        start: place of the first item in the task's fixed order of validation items, from 0.
        stop: place after the last.
    """

    candidate: Candidate
    tasks: tuple[str, ...]
    start: int
    stop: int


Answer = Mapping[str, Score] | Failure  # a score for each task that was asked for


@dataclass
class Tally:
    """How much a search evaluated, and how much it found.

    Attributes:
        evaluated: scores that were measured: one a candidate, task and range of items.
        found: scores that the ledger had.
        items_evaluated: items that candidates were scored on.
        items_found: items whose scores the ledger had.
        seconds_evaluating: wall-clock time in which candidates were evaluated.
        seconds: wall-clock time of the whole search.
    """

    evaluated: int = 0
    found: int = 0
    items_evaluated: int = 0
    items_found: int = 0
    seconds_evaluating: float = 0.0
    seconds: float = field(default=0.0)


class Ledger(ABC):
    """Scores that are recorded, and the evaluation of what is not. A subclass says where, and how."""

    def __init__(self) -> None:
        """Begin to count."""
        self.tally = Tally()

    @abstractmethod
    def find(self, candidate: Candidate, task: str, start: int, stop: int) -> Score | Failure | None:
        """Return what is recorded of a candidate on items of a task; None: nothing."""

    @abstractmethod
    def evaluate(self, questions: Sequence[Question]) -> Sequence[Answer]:
        """Score candidates, as many at once as it can, and record the answers, one for each question in their order.

        What fails by the candidate's fault is answered by a `Failure`; only what must stop the search is raised.
        """

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Return an answer for each question, having evaluated what is not recorded, and nothing else."""
        found = [self._found(question) for question in questions]
        missing = {
            number: tuple(task for task in question.tasks if task not in known)
            for number, (question, known) in enumerate(zip(questions, found, strict=True))
            if not isinstance(known, Failure) and len(known) < len(question.tasks)
        }
        asked = [
            Question(questions[number].candidate, tasks, questions[number].start, questions[number].stop)
            for number, tasks in missing.items()
        ]
        answers = dict(zip(missing, self._evaluated(asked), strict=True))
        return [_joined(questions[number], known, answers.get(number)) for number, known in enumerate(found)]

    def _found(self, question: Question) -> dict[str, Score] | Failure:
        known: dict[str, Score] = {}
        for task in question.tasks:
            score = self.find(question.candidate, task, question.start, question.stop)
            if isinstance(score, Failure):
                return score
            if score is not None:
                known[task] = score
        self.tally.found += len(known)
        self.tally.items_found += len(known) * (question.stop - question.start)
        return known

    def _evaluated(self, questions: Sequence[Question]) -> Sequence[Answer]:
        if not questions:
            return ()
        began = time.perf_counter()
        answers = self.evaluate(questions)
        self.tally.seconds_evaluating += time.perf_counter() - began
        for question, answer in zip(questions, answers, strict=True):
            scores = () if isinstance(answer, Failure) else answer.values()
            found, items = sum(score.found for score in scores), question.stop - question.start
            self.tally.found += found
            self.tally.items_found += found * items
            self.tally.evaluated += len(question.tasks) - found
            self.tally.items_evaluated += (len(question.tasks) - found) * items
        return answers


def _joined(question: Question, known: dict[str, Score] | Failure, answer: Answer | None) -> Answer:
    """Return what was found and what was evaluated as one answer, in the order of the tasks."""
    if isinstance(known, Failure):
        return known
    if isinstance(answer, Failure):
        return answer
    scores = {**known, **(answer or {})}
    for task in question.tasks:
        if (fault := _fault(scores.get(task), question.stop - question.start)) is not None:
            return Failure(why=f"{task}: {fault}", seconds=sum(score.seconds for score in scores.values()))
    return {task: scores[task] for task in question.tasks}


def _fault(score: Score | None, items: int) -> str | None:
    """Return what is wrong with the score of some items, None where nothing is."""
    if score is None:
        return "there is no score"
    for metric, values in score.metrics.items():
        if len(values) != items:
            return f"{metric} has {len(values)} values for {items} items"
        if not all(map(math.isfinite, values)):
            return f"{metric} is not finite on every item"
    return None
