from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from impart_core.base.errors import ConfigError
from impart_core.zoo.gate import Gate, compare

shares = st.floats(0, 1)


def gate(**own: Any) -> Gate:
    return Gate(**{"tasks": {"math": "acc"}, **own})


def passed(one: Gate, before: float, after: float, error: float | None = None, metric: str = "acc") -> bool:
    (found,) = compare(one, {"math": {metric: (before, error)}}, {"math": {metric: (after, error)}})
    return found.passed


def test_a_model_may_lose_so_many_points() -> None:
    assert passed(gate(loses=0.02), 0.5, 0.48)
    assert not passed(gate(loses=0.02), 0.5, 0.479)
    assert passed(gate(loses=0.0), 0.5, 0.5)
    assert passed(gate(loses=0.0), 0.5, 0.6)


def test_or_so_many_standard_errors_of_the_difference() -> None:
    error = 0.03  # of each, so that of the difference is .0424
    assert passed(gate(loses=0.02), 0.5, 0.458, error)
    assert not passed(gate(loses=0.02), 0.5, 0.457, error)
    assert not passed(gate(loses=0.02, errors=0), 0.5, 0.47, error)


def test_lower_is_better_with_losses() -> None:
    lost = Gate(tasks={"math": "answer_loss"}, loses=0.1)
    assert passed(lost, 1.0, 1.09, metric="answer_loss")
    assert not passed(lost, 1.0, 1.11, metric="answer_loss")
    bounded = Gate(tasks={"math": "answer_loss"}, loses=9, at_least={"math": 1.2})
    assert passed(bounded, 1.0, 1.2, metric="answer_loss")
    assert not passed(bounded, 1.0, 1.21, metric="answer_loss")


def test_a_floor_holds_whatever_the_fine_tune_has() -> None:
    assert not passed(gate(loses=1, at_least={"math": 0.4}), 0.3, 0.39)
    (alone,) = compare(gate(at_least={"math": 0.4}), None, {"math": {"acc": (0.41, None)}})
    assert alone.passed
    assert alone.lost is None


@given(shares, shares, shares, shares)
def test_what_loses_less_passes_where_what_loses_more_does(before: float, one: float, other: float, may: float) -> None:
    worse, better = sorted((one, other))
    assert passed(gate(loses=may), before, better) >= passed(gate(loses=may), before, worse)


@given(shares, shares, shares, shares)
def test_a_laxer_gate_passes_what_a_stricter_one_does(before: float, after: float, one: float, other: float) -> None:
    strict, lax = sorted((one, other))
    assert passed(gate(loses=lax), before, after) >= passed(gate(loses=strict), before, after)


def test_the_only_metric_need_not_be_named() -> None:
    scores = {"math": {"exact_match": (0.5, None), "answer_loss": (1.0, None)}}
    (found,) = compare(Gate(tasks=["math"]), scores, scores)  # type: ignore[arg-type]
    assert found.metric == "exact_match"


def test_the_advice_on_a_metric_with_a_filter_can_be_put_into_a_file() -> None:
    scores = {"math": {"acc,strict": (0.5, None), "acc,lax": (0.6, None)}}
    with pytest.raises(ConfigError) as raised:
        compare(Gate(tasks={"math": None}), scores, scores)
    advice = str(raised.value).partition("Say which: ")[2].removesuffix(".")
    assert yaml.safe_load(advice) == {"tasks": {"math": "acc,strict"}}


@pytest.mark.parametrize(
    ("wanted", "told"),
    [(None, "Say which: tasks: {math: acc}"), ("acc_nrm", "Did you mean 'acc_norm'?")],
)
def test_a_metric_that_is_not_clear_is_asked_for(wanted: str | None, told: str) -> None:
    scores = {"math": {"acc": (0.5, None), "acc_norm": (0.6, None)}}
    with pytest.raises(ConfigError) as raised:
        compare(Gate(tasks={"math": wanted}), scores, scores)
    assert told in str(raised.value)
