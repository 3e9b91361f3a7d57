"""A cell is empty only where no setting of its row takes the ratio, however few settings are asked for."""

from typing import Any

import numpy as np
import pytest

from impart_core.base.errors import InfeasibleBudgetError
from impart_core.engine.executor import ThreadExecutor
from tests.bench.study.grid import ROWS, Cell, Options
from tests.bench.study.measure import Asked, _Measuring

LOSSES = {"2": 3.0, "3x8,2": 2.0, "8x2,3x32,2": 1.0}  # by ladder


@pytest.mark.parametrize(
    ("settings", "impossible", "chosen"),
    [
        (3, (), "8x2,3x32,2"),
        (2, (), "3x8,2"),
        (1, (), "2"),
        (1, ("2",), "3x8,2"),
        (2, ("2",), "3x8,2"),
        (2, ("2", "3x8,2"), "8x2,3x32,2"),
        (1, ("2", "3x8,2"), "8x2,3x32,2"),
        (3, tuple(LOSSES), None),
    ],
)
def test_the_best_is_chosen_of_those_asked_for_or_the_next_that_is_possible(
    monkeypatch: pytest.MonkeyPatch, settings: int, impossible: tuple[str, ...], chosen: str | None
) -> None:
    assert tuple(LOSSES) == tuple(one["ladder"] for one in ROWS["delta-come"].settings)

    def compressed(_: Any, options: Options, __: int) -> str:
        if options["ladder"] in impossible:
            raise InfeasibleBudgetError("too few bytes")
        return str(options["ladder"])

    monkeypatch.setattr(_Measuring, "_compressed", compressed)
    monkeypatch.setattr(_Measuring, "_losses", lambda _, __, delta: np.array([LOSSES[delta]]))
    with ThreadExecutor(1) as executor:
        measuring = _Measuring(Cell("first", "math", "delta-come", 8.0), Asked("store", settings=settings), executor)
        if chosen is None:
            assert measuring.figures() is None
        else:
            assert measuring._chosen()["ladder"] == chosen
