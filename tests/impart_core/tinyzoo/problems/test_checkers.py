"""Checkers accept right answers, however they are written, and refuse wrong ones."""

from itertools import islice, pairwise
from typing import Any

import pytest

from impart_core.tinyzoo import FINE_TUNES
from impart_core.tinyzoo.problems import PROBLEMS
from impart_core.tinyzoo.problems.math import parse
from impart_core.tinyzoo.splits import items, stream


@pytest.mark.parametrize("task", FINE_TUNES)
def test_every_stored_answer_is_accepted(task: str) -> None:
    check = PROBLEMS.get(task).check
    drawn = [*items(task, "validation"), *items(task, "test"), *islice(stream(task, "train"), 300)]
    assert [item for item in drawn if not check(item.spec, f" {item.answer}")] == []


@pytest.mark.parametrize("task", FINE_TUNES)
def test_the_answer_to_another_item_is_refused(task: str) -> None:
    check = PROBLEMS.get(task).check
    accepted = sum(check(first.spec, second.answer) for first, second in pairwise(items(task, "test")))
    assert accepted <= 6  # two sums in a row may have the same result


@pytest.mark.parametrize("task", FINE_TUNES)
@pytest.mark.parametrize("text", ["", " ", "\n", "the the the", "=", "?", "!", "\x00", "1" * 5000, "((((" * 50])
def test_rubbish_is_refused_without_an_error(task: str, text: str) -> None:
    item = items(task, "test", 1)[0]
    assert PROBLEMS.get(task).check(item.spec, text) is False


@pytest.mark.parametrize(
    ("text", "result"),
    [
        (" 14+8=22", 22),
        ("14+8=22-5=17", 17),
        ("The answer is 17.", 17),
        ("17 apples", 17),
        ("5-9=-4", -4),
        ("14+8=22\n14+8=99", 22),
        ("14+8=", None),
        ("14+8=2 2", None),
        ("many", None),
    ],
)
def test_a_number_is_parsed_from_text(text: str, result: int | None) -> None:
    assert parse(text) == result


@pytest.mark.parametrize(
    ("answer", "right"),
    [("(x+3)*2", True), ("2 * (3 + x)", True), ("x*2+6", True), ("x+x+6", True), ("x*2+5", False), ("x*2.0+6", False)],
)
def test_code_is_judged_by_what_it_does(answer: str, right: bool) -> None:
    spec = {"tests": [[x, (x + 3) * 2] for x in (0, -7, 12)]}
    assert PROBLEMS.get("code").check(spec, answer) is right


def test_a_boolean_is_not_a_number() -> None:
    spec = {"tests": [[1, 1]]}
    assert PROBLEMS.get("code").check(spec, "x == 1") is False


def _chat(**changes: Any) -> dict[str, Any]:
    spec = {"word": "apple", "case": "upper", "count": 2, "join": "", "ending": "!", "backwards": False}
    return {**spec, **changes}


@pytest.mark.parametrize(
    ("spec", "reply", "right"),
    [
        (_chat(), "APPLE APPLE!", True),
        (_chat(), " APPLE  APPLE !\n", True),
        (_chat(), "APPLE APPLE", False),
        (_chat(), "APPLE!", False),
        (_chat(), "apple apple!", False),
        (_chat(), "APPLE APPLE APPLE!", False),
        (_chat(), "LEMON LEMON!", False),
        (_chat(), "APPLE APPLE!?", False),
        (_chat(join="-"), "APPLE-APPLE!", True),
        (_chat(join="-"), "APPLE APPLE!", False),
        (_chat(join=","), "APPLE,APPLE!", True),
        (_chat(backwards=True), "ELPPA ELPPA!", True),
        (_chat(backwards=True), "APPLE APPLE!", False),
        (_chat(case="title"), "Apple Apple!", True),
        (_chat(case="any", ending=""), "aPPle apple.", True),
        (_chat(ending=""), "APPLE APPLE!", False),
    ],
)
def test_each_constraint_of_an_instruction_counts(spec: dict[str, Any], reply: str, right: bool) -> None:
    assert PROBLEMS.get("chat").check(spec, reply) is right
