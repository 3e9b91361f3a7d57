"""What is no short expression of known syntax is refused before it is walked."""

import pytest

from impart_core.tinyzoo.interpreter import ExpressionError
from impart_core.tinyzoo.interpreter.syntax import parse
from impart_core.tinyzoo.splits import items


def test_every_stored_answer_passes() -> None:
    for item in items("code", "test"):
        parse(item.answer)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("x" * 201, "longer than 200 characters"),
        ("x =", "not a Python expression"),
        ("", "not a Python expression"),
        ("lambda: 0", "uses Lambda"),
        ("x.real", "reads the attribute real"),
        ("x.real.upper()", "reads the attribute real"),
        ("[x.real for i in x]", "reads the attribute real"),
        ("_x", "uses the name _x"),
        ("b''", "constant of type bytes"),
        ("abs(**x)", "unpacks keyword arguments"),
        ("-" * 60 + "x", "nested too deeply"),
    ],
)
def test_it_is_refused_with_a_reason(source: str, sentence: str) -> None:
    with pytest.raises(ExpressionError, match=sentence):
        parse(source)
