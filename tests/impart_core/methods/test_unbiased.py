"""Methods with masks are right on average: over seeds, the mean of what is decoded approaches what they keep.

Under the paper's count pairs and keep probabilities depend on no seed, so that the expectation is known: of ImPart it
is the rank-K part of ΔW. The error of a mean over s seeds falls as 1/√s.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
import torch

from impart_core.blocks.request import CompressConfig
from impart_core.codec.mask import keep_probability
from impart_core.delta.svd import decompose
from impart_core.methods import METHODS
from impart_core.methods.base import Projection
from tests.impart_core.methods.requests import WITHOUT_MASKS, decode, encode, request_of
from tests.support import decaying_delta

SHAPE, SEEDS = (24, 32), 1024
OF_FOUR_VALUES = torch.tensor([-1.0, 0.0, 0.5, 2.0])


@dataclass(frozen=True)
class Unbiased:
    """A method at a ratio at which it masks, and what it is expected to give.

    Attributes:
        request: its seed apart.
        delta: what is encoded, (24, 32).
        expected: what is decoded on average, by the delta.
        probability: of each entry, where entries are kept by themselves.
    """

    request: CompressConfig
    delta: torch.Tensor
    expected: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.double
    probability: float | None = 0.25


def paper(method: str, cr: float, **options: object) -> CompressConfig:
    return request_of(method, cr, accounting="paper", options=options)


def leading_pairs(delta: torch.Tensor) -> torch.Tensor:
    """Return the part of a delta that ImPart keeps, with vectors as they are stored, in float16."""
    pairs, factors = len(encode(Projection.of(delta, "w"), UNBIASED["impart"].request)["sigma"]), decompose(delta, "w")
    u, v = factors.u[:pairs].half().double(), factors.v[:pairs].half().double()
    return (u * factors.sigma[:pairs, None].double()).T @ v


UNBIASED = {
    "dare": Unbiased(paper("dare", 4), decaying_delta(*SHAPE), lambda delta: delta.half().double()),
    # Of one magnitude, so that its mean is that of any entries that a mask keeps.
    "bitdelta": Unbiased(paper("bitdelta", 64), 0.01 * decaying_delta(*SHAPE).sign()),
    "bitdelta by rows": Unbiased(paper("bitdelta", 64, per_row=True), 0.01 * decaying_delta(*SHAPE).sign()),
    # Of few values: rounding on grids of a group's own is not the same for all masks; here it is nearly exact.
    "dare-qt": Unbiased(
        paper("dare-qt", 8, solver="nearest", bits=8, group_size=60_000),
        OF_FOUR_VALUES[torch.randint(4, SHAPE, generator=torch.Generator().manual_seed(0))],
    ),
    "impart": Unbiased(paper("impart", 3, beta=0.3), decaying_delta(*SHAPE), leading_pairs, None),
}


@cache
def errors_of_means(case: str) -> dict[int, float]:
    """Return, by number of seeds, the root mean square error of their mean, over groups of so many seeds."""
    one, found = UNBIASED[case], []
    projection = Projection.of(one.delta, "w")
    for seed in range(SEEDS):
        request = one.request.model_copy(update={"seed": seed})
        found.append(decode(encode(projection, request), projection, request).double())
    errors: npt.NDArray[np.float64] = (torch.stack(found) - one.expected(one.delta)).numpy()
    means = {seeds: errors.reshape(-1, seeds, *SHAPE).mean(axis=1) for seeds in (1, 16, 256, SEEDS)}
    return {seeds: float(np.sqrt((mean**2).sum(axis=(1, 2)).mean())) for seeds, mean in means.items()}


@pytest.mark.parametrize("case", UNBIASED)
def test_over_seeds_the_mean_approaches_what_is_expected_as_one_over_their_root(case: str) -> None:
    one, found = UNBIASED[case], errors_of_means(case)
    assert found[1] > 0.3 * float(torch.norm(one.delta))  # the masks do drop something
    for seeds, error in found.items():
        # With one group left its mean's error is itself known to about 1/√(2·d), d ≈ 20 effective entries.
        assert error == pytest.approx(found[1] / seeds**0.5, rel=0.25)
    if one.probability is not None:
        # An entry δ is δ/q with probability q, which has the variance δ²(1/q − 1).
        expected = (1 / one.probability - 1) ** 0.5 * float(torch.norm(one.delta))
        assert found[1] == pytest.approx(expected, rel=0.02)


def test_every_method_that_claims_to_be_unbiased_is_here() -> None:
    assert {case.split()[0] for case in UNBIASED} == {*METHODS} - {*WITHOUT_MASKS, "impart-qt"}  # whose grids vary


def test_masks_of_u_and_v_are_independent() -> None:
    """Were they equal, the diagonal of a diagonal delta would come out too large: by 1/q, q the kept share."""
    diagonal, seeds = torch.linspace(1, 0.5, 16), 400
    projection, total = Projection.of(torch.diag(diagonal), "w"), torch.zeros(16, dtype=torch.float64)
    for seed in range(seeds):
        request = paper("impart", 2, beta=0.0, c=20.0).model_copy(update={"seed": seed})
        codes = encode(projection, request)
        total += decode(codes, projection, request).double().diagonal()
    q = keep_probability(codes["keep"].numpy())[1:]
    found = (total / seeds / diagonal.double()).numpy()[1 : len(q) + 1]
    # Entry k is 1/q² with probability q², so that its mean over the seeds has the variance (1/q² − 1)/seeds.
    spread = np.sqrt((1 / q**2 - 1).sum() / seeds) / len(q)
    assert found.mean() == pytest.approx(1, abs=4 * spread)
    assert (1 / q).mean() > 1 + 8 * spread
