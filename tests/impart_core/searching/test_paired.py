import numpy as np
import pytest
from scipy import stats

from impart_core.searching.paired import difference, is_below


def test_difference_and_error_are_those_of_pairs() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=40), rng.normal(size=40)
    found = difference({"t": one}, {"t": other})
    assert found.value == pytest.approx((one - other).mean())
    assert found.stderr == pytest.approx(stats.sem(one - other))


def test_with_many_items_it_is_the_t_test_of_scipy() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.normal(0.05, size=4000), rng.normal(size=4000)
    expected = stats.ttest_rel(one, other).pvalue
    assert difference({"t": one}, {"t": other}).p == pytest.approx(expected, rel=0.05)  # two items more of 4,000


def test_difficulty_that_items_have_in_common_does_not_blur_it() -> None:
    rng = np.random.default_rng(2)
    difficulty = rng.normal(size=50) * 10
    one = difficulty + 0.1 * rng.normal(size=50)
    assert is_below({"t": one - 0.2}, {"t": one}, 0.001)


def test_alike_candidates_differ_by_nothing() -> None:
    same = {"t": np.array([1.0, 0.0, 1.0])}
    found = difference(same, same)
    assert (found.value, found.stderr, found.p) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize("items", [1, 2, 3])
def test_a_few_items_prove_nothing(items: int) -> None:
    right, wrong = {"t": np.ones(items)}, {"t": np.zeros(items)}
    assert not is_below(wrong, right, 0.05)


@pytest.mark.parametrize(("share", "items"), [(0.3, 20), (0.5, 50), (0.8, 200)])
def test_equal_candidates_are_told_apart_no_more_often_than_the_level_says(share: float, items: int) -> None:
    rng = np.random.default_rng(3)
    answers = (rng.random((2, 2000, items)) < share).astype(float)
    wrong = sum(is_below({"t": one}, {"t": other}, 0.1) for one, other in zip(*answers, strict=True))
    assert wrong / 2000 < 0.1 + 3 * np.sqrt(0.1 * 0.9 / 2000)


def test_tasks_add_up_and_may_be_compared_with_others() -> None:
    rng = np.random.default_rng(4)
    a, b, c = rng.normal(size=(3, 30))
    both = difference({"a": a, "b": b}, {"a": b, "b": c})
    assert both.value == pytest.approx((a - b).mean() + (b - c).mean())
    assert both.stderr == pytest.approx(np.hypot(stats.sem(a - b), stats.sem(b - c)))
    unlike = difference({"a": a}, {"b": b})  # worst tasks of two candidates: no pairs
    assert unlike.stderr == pytest.approx(np.hypot(stats.sem(a), stats.sem(b)))
    assert unlike.items == 60
