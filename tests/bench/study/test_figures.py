"""Shares and standard errors against independent ways to get them."""

import numpy as np
import pytest

from tests.bench.study.figures import Losses, figures_of, mean_and_error, over_tasks, share_kept


def test_with_one_seed_the_error_is_that_over_items() -> None:
    scores = np.array([[1.0, 2.0, 3.0, 6.0]])
    assert mean_and_error(scores) == (3.0, pytest.approx(scores[0].std(ddof=1) / 2))


def test_seeds_that_differ_add_their_own_error() -> None:
    """Items that do not differ leave the seeds' error alone: 1 and 3 have the deviation √2, over √2 seeds 1."""
    assert mean_and_error(np.array([[1.0, 1.0], [3.0, 3.0]])) == (2.0, pytest.approx(1.0))


def test_base_and_fine_tune_keep_nothing_and_all() -> None:
    base, tuned = np.array([3.0, 2.0, 4.0]), np.array([0.1, 0.0, 0.2])
    assert share_kept(Losses(base[None], base, tuned))[0] == pytest.approx(0.0)
    assert share_kept(Losses(tuned[None], base, tuned)) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-12))
    half = (base + tuned) / 2
    assert share_kept(Losses(half[None], base, tuned)) == (pytest.approx(0.5), pytest.approx(0.0, abs=1e-12))


def test_the_error_of_a_share_is_that_of_the_bootstrap() -> None:
    """Its linearisation holds for many items; 2,000 resamples know a deviation to 1.6 %."""
    rng = np.random.default_rng(0)
    base, tuned = rng.gamma(9.0, 0.3, 400), rng.gamma(1.0, 0.02, 400)
    compressed = tuned + rng.gamma(1.0, 0.4, 400) * base / 3
    shares = []
    for _ in range(2000):
        drawn = rng.integers(0, 400, 400)
        shares.append(share_kept(Losses(compressed[None, drawn], base[drawn], tuned[drawn]))[0])
    _, error = share_kept(Losses(compressed[None], base, tuned))
    assert error == pytest.approx(np.std(shares), rel=0.08)


def test_errors_of_tasks_add_in_squares() -> None:
    figures = [{"share_kept": [0.8, 0.03]}, {"share_kept": [0.6, 0.04]}]
    assert over_tasks(figures, "share_kept") == (pytest.approx(0.7), pytest.approx(0.025))


def test_figures_hold_what_they_are_of() -> None:
    losses = Losses(np.array([[0.5, 0.7]]), np.array([2.0, 2.2]), np.array([0.0, 0.0]))
    found = figures_of(losses, {"bytes": 10.0}, {"bits": 2}, np.array([[1.0, 0.0]]))
    assert (found["bytes"], found["items"], found["seeds"], found["options"]) == (10.0, 2, 1, {"bits": 2})
    assert found["exact_match"][0] == 0.5
    assert "exact_match" not in figures_of(losses, {"bytes": 10.0}, {}, None)
