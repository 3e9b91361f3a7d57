"""DARE and DELLA drop entries with the probabilities that they say, and rescale what stays."""

import numpy as np
import pytest
import torch

from impart_core.merging.method import Draws
from impart_core.merging.methods import MERGE_METHODS
from tests.impart_core.merging.methods.calls import RANDOM, deltas_of, merged

SEEDS = 400


def means(name: str, delta: torch.Tensor, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how often each entry stays, and the mean of what it becomes, over many seeds."""
    results = torch.stack(
        [merged(name, torch.zeros_like(delta), [delta], weight=1.0, seed=seed, **options) for seed in range(SEEDS)]
    )
    return (results != 0).double().mean(dim=0), results.double().mean(dim=0)


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
def test_dare_keeps_entries_with_its_density_and_keeps_the_expectation(name: str) -> None:
    delta = deltas_of(1, (11, 13))[0]
    kept, mean = means(name, delta, density=0.3, rescale="expectation")
    error = np.sqrt(0.3 * 0.7 / SEEDS)
    assert float((kept - 0.3).abs().max()) < 5 * error  # of 143 entries
    assert float(((mean - delta) / delta).abs().max()) < 5 * error / 0.3


@pytest.mark.parametrize("name", ["della_linear", "della"])
def test_della_keeps_larger_entries_of_a_row_more_often_and_keeps_the_expectation(name: str) -> None:
    delta = deltas_of(1, (11, 13))[0]
    kept, mean = means(name, delta, density=0.5, epsilon=0.3, rescale="expectation", normalize=False)
    rank = delta.abs().argsort(dim=-1).argsort(dim=-1).double()
    probability = 0.2 + rank / 12 * 0.6
    error = (probability * (1 - probability) / SEEDS).sqrt()
    assert float(((kept - probability) / error).abs().max()) < 5
    assert float(((mean - delta) / delta * probability / error).abs().max()) < 5


@pytest.mark.parametrize("name", RANDOM)
def test_rescaling_keeps_the_l1_norm_by_default_and_false_leaves_entries_alone(name: str) -> None:
    delta = deltas_of(1, (40, 50))[0]
    options = {"weight": 1.0, "density": 0.5, "normalize": False}
    rescaled = merged(name, torch.zeros_like(delta), [delta], **options)
    torch.testing.assert_close(rescaled.abs().sum(), delta.abs().sum())
    plain = merged(name, torch.zeros_like(delta), [delta], rescale=False, **options)
    assert torch.equal(plain, delta * (plain != 0))
    assert torch.equal(plain != 0, rescaled != 0)


@pytest.mark.parametrize("name", RANDOM)
def test_a_density_of_one_drops_nothing_whatever_epsilon_is(name: str) -> None:
    delta = deltas_of(1, (6, 7))[0]
    torch.testing.assert_close(merged(name, torch.zeros_like(delta), [delta], weight=1.0, density=1.0), delta)


def test_of_equal_entries_in_a_row_those_that_come_first_are_kept_more_often() -> None:
    delta = torch.ones(1, 50)
    kept, _ = means("della_linear", delta, density=0.5, epsilon=0.45, rescale=False)
    assert float(kept[0, :10].mean()) > 0.8
    assert float(kept[0, -10:].mean()) < 0.2


def test_models_drop_entries_apart_from_one_another() -> None:
    ones = torch.ones(100, 100)
    dare = MERGE_METHODS.get("dare_linear").function
    both = dare([ones, ones], weight=[1.0, 10.0], density=0.5, rescale=False, draws=Draws(0, "w"))
    shares = [float((both == value).double().mean()) for value in (0, 1, 10, 11)]
    assert max(abs(share - 0.25) for share in shares) < 5 * np.sqrt(0.25 * 0.75 / 10_000)
