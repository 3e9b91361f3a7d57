"""ImPart is unbiased: over seeds, the mean of what is decoded approaches the kept part of the delta itself.

Under the paper's accounting the pairs and their probabilities depend on no seed, so that the expectation is
exactly the rank-K part of ΔW. The spread of a mean over s seeds falls as 1/√s: four times the seeds, half the error.
"""

from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
import torch

from impart_core.codec.mask import keep_probability
from impart_core.delta.svd import decompose
from impart_core.methods.base import Projection
from impart_core.methods.impart import Impart
from tests.impart_core.pipeline import config_of
from tests.support import decaying_delta

pytestmark = pytest.mark.usefixtures("one_thread")

METHOD = Impart()
DELTA = decaying_delta(24, 32)
SEEDS = 1024


@cache
def decoded() -> npt.NDArray[np.float64]:
    """Return what is decoded under each seed, (seeds, m, n)."""
    found = []
    for seed in range(SEEDS):
        config = config_of(3, seed=seed, accounting="paper", options={"beta": 0.3})
        found.append(
            METHOD.decode(METHOD.encode(Projection.of(DELTA, "w"), config), "w", (24, 32), seed).double().numpy()
        )
    return np.stack(found)


def kept_part() -> npt.NDArray[np.float64]:
    config = config_of(3, accounting="paper", options={"beta": 0.3})
    pairs = len(METHOD.encode(Projection.of(DELTA, "w"), config)["sigma"])
    factors = decompose(DELTA, "w")
    # The entries as they are stored, in float16: what remains is the masks' own error.
    u, v = factors.u[:pairs].half().double(), factors.v[:pairs].half().double()
    return ((u * factors.sigma[:pairs, None].double()).T @ v).numpy()


def error_of_means(group: int) -> float:
    """Return the root mean square, over groups of seeds, of the error of the group's mean."""
    means = decoded().reshape(-1, group, 24, 32).mean(axis=1)
    return float(np.sqrt(((means - kept_part()) ** 2).sum(axis=(1, 2)).mean()))


@pytest.mark.parametrize("seeds", [4, 16, 64])
def test_four_times_the_seeds_halve_the_error_of_the_mean(seeds: int) -> None:
    ratio = error_of_means(seeds) / error_of_means(4 * seeds)
    # With four groups left the larger mean's error is itself known to about 1/√(2·4·d), d ≈ 20 effective entries.
    assert ratio == pytest.approx(2, rel=0.2)


def test_no_part_of_the_error_of_the_mean_over_all_seeds_is_left_over() -> None:
    single, overall = error_of_means(1), error_of_means(SEEDS)
    assert single > 0.3 * np.linalg.norm(kept_part())  # the masks do drop something
    # A bias of a hundredth of the norm would show: pure chance gives single/√seeds, within a fourth.
    assert overall == pytest.approx(single / SEEDS**0.5, rel=0.25)


def test_without_rescaling_by_the_keep_probability_the_mean_would_miss() -> None:
    config = config_of(3, accounting="paper", options={"beta": 0.3})
    keep = METHOD.encode(Projection.of(DELTA, "w"), config)["keep"].numpy().astype(np.float64)
    shrunk = decompose(DELTA, "w").sigma[: len(keep)].double().numpy() * (1 - ((keep + 1) / 65536) ** 2)
    assert np.linalg.norm(shrunk) > 5 * error_of_means(SEEDS)


def test_masks_of_u_and_v_are_independent() -> None:
    """Were they equal, the diagonal of a diagonal delta would come out too large: by 1/q, q the kept share."""
    diagonal, seeds = torch.linspace(1, 0.5, 16), 400
    total = torch.zeros(16, dtype=torch.float64)
    for seed in range(seeds):
        config = config_of(2, seed=seed, accounting="paper", options={"beta": 0.0, "c": 20.0})
        codes = METHOD.encode(Projection.of(torch.diag(diagonal), "w"), config)
        total += METHOD.decode(codes, "w", (16, 16), seed).double().diagonal()
    q = keep_probability(codes["keep"].numpy())[1:]
    found = (total / seeds / diagonal.double()).numpy()[1 : len(q) + 1]
    # Entry k is 1/q² with probability q², so that its mean over the seeds has the variance (1/q² − 1)/seeds.
    spread = np.sqrt((1 / q**2 - 1).sum() / seeds) / len(q)
    assert found.mean() == pytest.approx(1, abs=4 * spread)
    assert (1 / q).mean() > 1 + 8 * spread
