import itertools
from datetime import date
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from impart_core.base.errors import ConfigError
from impart_core.searching.hole import Range
from impart_core.searching.space import Space
from impart_core.searching.starts import starting_values

MERGE = {
    "merge": {
        "merge_method": {"choose": ["task_arithmetic", "ties"]},
        "models": [
            {"model": name, "parameters": {"weight": [{"range": [0, 1.5]}, {"range": [0, 1.5]}], "density": 0.5}}
            for name in ("math", "code", "chat")
        ],
        "parameters": {"lambda": {"range": [0.1, 10], "log": True, "name": "λ"}},
    }
}


def test_holes_are_found_anywhere_and_named_by_their_place() -> None:
    space = Space.of(MERGE)
    weights = [f"models.{model}.parameters.weight.{group}" for model, group in itertools.product(range(3), range(2))]
    assert list(space.holes) == ["merge_method", *weights, "λ"]


def test_a_filled_template_is_the_template_with_values_in_its_holes() -> None:
    template = {
        "compress": {"cr": 16, "method": {"choose": ["impart", "dare"]}, "options": {"beta": {"range": [0, 1]}}}
    }
    candidate = Space.of(template).fill({"method": "dare", "options.beta": 0.25})
    assert candidate.filled == {"compress": {"cr": 16, "method": "dare", "options": {"beta": 0.25}}}


def test_a_candidate_is_known_by_what_it_is_and_not_by_the_search() -> None:
    one = Space.of({"compress": {"cr": {"range": [2, 8]}, "seed": 1}}).fill({"cr": 4})
    same = Space.of({"compress": {"seed": 1, "cr": {"choose": [4, 8], "name": "ratio"}}}).fill({"ratio": 4})
    other = Space.of({"compress": {"cr": {"range": [2, 8]}, "seed": 2}}).fill({"cr": 4})
    assert one.digest == same.digest != other.digest


def test_holes_of_one_name_get_one_value() -> None:
    hole = {"range": [0, 1], "name": "w"}
    candidate = Space.of({"merge": {"a": hole, "b": [dict(hole)]}}).fill({"w": 0.5})
    assert candidate.filled == {"merge": {"a": 0.5, "b": [0.5]}}


@pytest.mark.parametrize(
    ("hole", "why"),
    [
        ({"choose": []}, "nothing to choose"),
        ({"choose": [1, 2, 1]}, "1 stands there twice"),
        ({"range": [3, 1]}, "above the highest"),
        ({"range": [0, 1], "log": True}, "above 0"),
        ({"range": [1, 8], "log": True, "step": 1}, "do not go together"),
        ({"range": [0, 1], "step": 0.3}, "end at 0.9"),
        ({"range": [0, 1], "step": 0}, "more than 0"),
        ({"range": [0, 1], "stpe": 0.5}, "Did you mean 'step'"),
        ({"range": [0, float("inf")]}, "finite"),
        ({"range": [0, 1], "default": 2}, "default 2 is none"),
        ({"choose": ["a"], "range": [0, 1]}, "Unknown setting 'range'"),
    ],
)
def test_a_hole_that_cannot_be_filled_is_refused_by_its_place(hole: dict[str, object], why: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)hole at a\.0: .*{why}"):
        Space.of({"merge": {"a": [hole]}})


def test_an_empty_space_is_refused() -> None:
    with pytest.raises(ConfigError, match="no hole"):
        Space.of({"merge": {"a": [1, 2], "b": {"range_of": 3}}})


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({}, "lambda has no value"),
        ({"lambda": 3}, "cannot be 3"),
        ({"lambda": 1, "lambbda": 1}, "Did you mean 'lambda'"),
    ],
)
def test_values_that_fit_no_hole_are_refused(values: dict[str, float], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Space.of({"merge": {"lambda": {"range": [0, 2]}}}).fill(values)


def test_a_grid_gives_each_candidate_once() -> None:
    space = Space.of({"merge": {"a": {"choose": ["x", "y"]}, "b": {"range": [0.1, 0.9], "step": 0.2}}})
    grid = [tuple(values.values()) for values in space.grid()]
    assert grid == list(itertools.product(["x", "y"], [0.1, 0.3, 0.5, 0.7, 0.9]))
    assert space.size == len(grid)


def test_steps_between_whole_numbers_stay_whole() -> None:
    assert Range(range=(1, 7), step=3).values == (1, 4, 7)
    assert all(isinstance(value, int) for value in Range(range=(1, 7), step=3).values or ())


@given(st.floats(-5, 5), st.floats(0.01, 5), st.floats(-20, 20))
def test_the_nearest_value_of_a_range_is_held_by_it(low: float, width: float, value: float) -> None:
    hole = Range(range=(low, low + width))
    assert hole.holds(hole.nearest(value))


def test_a_random_candidate_fits_and_covers_its_range() -> None:
    space = Space.of(MERGE)
    rng = np.random.default_rng(0)
    drawn = [space.random(rng) for _ in range(300)]
    for values in drawn:
        space.fill(values)
    logs = np.log10([values["λ"] for values in drawn])
    assert abs(logs.mean()) < 0.15  # uniform in the logarithm from −1 to 1: standard error 0.033


def test_starts_are_the_default_then_equal_weights_then_each_model_alone() -> None:
    space = Space.of(MERGE)
    starts = [space.fill(values).filled["merge"] for values in starting_values(space, ["uniform", "one-hot", {"λ": 5}])]
    weights = [[model["parameters"]["weight"] for model in start["models"]] for start in starts]
    third = 0.333333
    assert weights[0] == weights[5] == [[0.75, 0.75]] * 3
    assert weights[1] == [[third, third]] * 3
    assert weights[2:5] == [[[float(n == model)] * 2 for n in range(3)] for model in range(3)]
    assert [start["parameters"]["lambda"] for start in starts] == [1.0] * 5 + [5]


def test_starts_of_weights_say_nothing_where_there_are_none() -> None:
    space = Space.of({"compress": {"cr": {"range": [1, 16], "default": 4}}})
    assert list(starting_values(space, ["uniform", "one-hot"])) == [{"cr": 4}]


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ({"a": {"choose": [{"range": [0, 1]}, 2]}}, "The hole at a holds another"),
        ({"a": {"choose": [1]}, "b": {"c": [float("nan")]}}, "b.c.0 is nan"),
        ({"a": {"choose": [float("inf")]}}, "a.choose.0 is inf"),
        ({"a": {"choose": [1]}, "b": {1: 2}}, "b is {1: 2}"),
        ({"a": {"choose": [1]}, "b": date(2025, 1, 2)}, "b is datetime.date"),
    ],
)
def test_what_no_candidate_could_be_known_by_is_refused(template: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Space.of({"merge": template})
