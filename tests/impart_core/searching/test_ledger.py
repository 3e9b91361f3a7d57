import pytest

from impart_core.searching.ledger import Answer, Failure, Ledger, Question, Score
from impart_core.searching.space import Candidate

ONE, OTHER = (Candidate({"x": x}, {"x": x}) for x in (1, 2))


class Listed(Ledger):
    """A ledger that answers from a list."""

    def __init__(self, answers: list[Answer], found: dict[tuple[str, str], Score | Failure] | None = None) -> None:
        super().__init__()
        self.answers, self.found, self.asked = answers, found or {}, []

    def find(self, candidate: Candidate, task: str, start: int, stop: int) -> Score | Failure | None:
        return self.found.get((candidate.digest, task))

    def evaluate(self, questions: list[Question]) -> list[Answer]:
        self.asked += questions
        return self.answers


def test_only_what_is_not_recorded_is_evaluated_and_answers_keep_their_order() -> None:
    known, new = Score(metrics={"m": (1.0,)}), Score(metrics={"m": (2.0,)})
    ledger = Listed([{"b": new}], {(ONE.digest, "a"): known, (OTHER.digest, "a"): known, (OTHER.digest, "b"): known})
    answers = ledger.ask([Question(OTHER, ("a", "b"), 0, 1), Question(ONE, ("a", "b"), 0, 1)])
    assert answers == [{"a": known, "b": known}, {"a": known, "b": new}]
    assert ledger.asked == [Question(ONE, ("b",), 0, 1)]
    assert (ledger.tally.evaluated, ledger.tally.found) == (1, 3)
    assert (ledger.tally.items_evaluated, ledger.tally.items_found) == (1, 3)


def test_what_another_search_evaluated_meanwhile_counts_as_found() -> None:
    theirs, own = Score(metrics={"m": (1.0, 2.0)}, found=True), Score(metrics={"m": (3.0, 4.0)})
    ledger = Listed([{"a": theirs, "b": own}, Failure(why="too large")])
    ledger.ask([Question(ONE, ("a", "b"), 0, 2), Question(OTHER, ("a", "b"), 0, 2)])
    assert (ledger.tally.evaluated, ledger.tally.found) == (3, 1)
    assert (ledger.tally.items_evaluated, ledger.tally.items_found) == (6, 2)


def test_a_failure_that_is_recorded_is_not_evaluated_again() -> None:
    failure = Failure(why="too large")
    ledger = Listed([], {(ONE.digest, "b"): failure})
    assert ledger.ask([Question(ONE, ("a", "b"), 0, 1)]) == [failure]
    assert ledger.asked == []


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({}, "a: there is no score"),
        ({"a": Score(metrics={"m": (1.0, 2.0)})}, "a: m has 2 values for 1 items"),
        ({"a": Score.model_construct(metrics={"m": (float("nan"),)}, bytes=None, seconds=0.0)}, "a: m is not finite"),
    ],
)
def test_a_score_that_is_none_is_a_failure(answer: Answer, why: str) -> None:
    (told,) = Listed([answer]).ask([Question(ONE, ("a",), 0, 1)])
    assert isinstance(told, Failure) and told.why.startswith(why)
