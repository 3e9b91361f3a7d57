"""Text that is not a harmless expression is refused before a process has to look at it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from impart_core.tinyzoo.problems import PROBLEMS
from impart_core.tinyzoo.sandbox import problem_with
from impart_core.tinyzoo.splits import items


def test_every_stored_answer_passes() -> None:
    assert PROBLEMS.get("code")
    assert [item.answer for item in items("code", "test") if problem_with(item.answer) is not None] == []


@pytest.mark.parametrize(
    "source",
    [
        "",
        "x =",
        "import os",
        "x = 1",
        "lambda: 0",
        "().__class__",
        "_x",
        "'{0.__class__}'.format(x)",
        "(y := 1)",
        "f'{x}'",
        "[" * 150,
        "x" * 201,
    ],
)
def test_it_is_refused(source: str) -> None:
    assert problem_with(source) is not None


@given(st.text(max_size=60))
def test_any_text_gets_an_answer(text: str) -> None:
    assert problem_with(text) is None or isinstance(problem_with(text), str)
