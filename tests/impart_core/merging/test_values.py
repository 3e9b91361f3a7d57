"""Values of a merge file: scalars, gradients, and by the names of tensors."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from impart_core.base.errors import ConfigError
from impart_core.merging.values import parse_setting

NUMBERS = st.lists(st.floats(-10, 10), min_size=1, max_size=6)


@pytest.mark.parametrize(
    ("raw", "depth", "value"),
    [
        (0.3, 0.7, 0.3),
        (True, 0.0, True),
        ("1e-5", 0.0, 1e-5),  # text to YAML 1.1
        ([1, 2], 0.0, 1),
        ([1, 2], 0.25, 1.25),
        ([1, 2], 1.0, 2),
        ([0, 0.5, 0.3, 0.7, 1], 1 / 3, 0.5 + (4 / 3 - 1) * (0.3 - 0.5)),
        ([True, False], 0.4, True),
        ([True, False], 1.0, False),
        ({"value": 3}, 0.5, 3),
    ],
)
def test_a_value_at_a_depth(raw: object, depth: float, value: object) -> None:
    assert parse_setting("t", raw).at("model.layers.0.mlp.up_proj.weight", depth) == pytest.approx(value)


@pytest.mark.parametrize(
    ("tensor", "value"),
    [("model.layers.1.self_attn.q_proj.weight", 0.5), ("model.layers.1.mlp.up_proj.weight", 2.0), ("lm_head", 7.0)],
)
def test_the_first_case_that_fits_a_name_counts(tensor: str, value: float) -> None:
    cases = [
        {"filter": "self_attn", "value": [0, 1]},
        {"filter": "mlp", "value": 2},
        {"filter": "mlp.up_proj", "value": 3},
        {"filter": "*", "value": 7},
    ]
    assert parse_setting("weight", cases).at(tensor, 0.5) == value


def test_no_case_that_fits_is_no_value() -> None:
    assert parse_setting("weight", [{"filter": "mlp", "value": 2}]).at("lm_head.weight", 0.0) is None


@given(NUMBERS, st.floats(0, 1))
def test_a_gradient_stays_between_its_numbers_and_meets_its_ends(numbers: list[float], depth: float) -> None:
    gradient = parse_setting("weight", numbers)
    inside = gradient.at("", depth)
    assert isinstance(inside, float)
    assert min(numbers) - 1e-9 <= inside <= max(numbers) + 1e-9
    assert gradient.at("", 0.0) == pytest.approx(numbers[0])
    assert gradient.at("", 1.0) == pytest.approx(numbers[-1])


@pytest.mark.parametrize(
    "raw",
    [
        None,
        [],
        [[1]],
        {"filter": "mlp"},
        [{"value": 1, "fliter": "mlp"}],
        [{"value": 1}, 3],
        {"a": 1},
        {"filter": ["a"], "value": 1},
        10**400,
    ],
)
def test_what_is_no_value_is_refused_by_name(raw: object) -> None:
    with pytest.raises(ConfigError, match=r"parameters\.weight"):
        parse_setting("parameters.weight", raw)


def test_files_that_mean_the_same_are_written_the_same() -> None:
    assert parse_setting("t", {"value": 0.5}).plain() == parse_setting("t", 0.5).plain()
    assert parse_setting("t", [{"filter": "*", "value": [1, 2]}]).plain() == parse_setting("t", [1, 2]).plain()
