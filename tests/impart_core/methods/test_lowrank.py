"""LowRank: the truncated decomposition, as much of it as fits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.blocks.request import CompressConfig
from impart_core.codec.parts import Codes, nbytes
from impart_core.delta.budget import budget_bytes
from impart_core.methods.base import Projection
from impart_core.methods.lowrank import LowRank
from tests.impart_core.pipeline import config_of
from tests.support import decaying_delta

pytestmark = pytest.mark.usefixtures("one_thread")

METHOD = LowRank()
sides = st.integers(2, 40)
accountings = pytest.mark.parametrize("accounting", ["bytes", "paper"])


def lowrank(cr: float, accounting: str = "bytes", seed: int = 0) -> CompressConfig:
    return config_of(cr, method="lowrank", accounting=accounting, seed=seed)


def encode(delta: torch.Tensor, config: CompressConfig, name: str = "w") -> Codes:
    return METHOD.encode(Projection.of(delta, name), config)


@given(m=sides, n=sides, cr=st.floats(1, 20), seed=st.integers(0, 5))
@settings(max_examples=80, deadline=None)
def test_stored_bytes_are_within_the_ratio_and_a_triplet_more_would_not_be(
    m: int, n: int, cr: float, seed: int
) -> None:
    if cr > METHOD.highest_cr(m, n, lowrank(cr)):
        return
    codes, triplet = encode(decaying_delta(m, n, seed=seed), lowrank(cr)), 2 * (m + n) + 4
    assert 2 * m * n / nbytes(codes) >= cr
    assert nbytes(codes) == METHOD.expected_bytes(m, n, lowrank(cr)) == triplet * len(codes["sigma"])
    assert len(codes["sigma"]) == min(m, n) or nbytes(codes) + triplet > budget_bytes(m, n, cr)


@pytest.mark.parametrize(
    ("shape", "cr", "expected"),
    # r·d = mn/(CR(m + n)): 32·1/16, 24·(1/4)·…; halves up.
    [((32, 32), 8, 2), ((64, 64), 16, 2), ((20, 20), 4, 3), ((24, 40), 4, 4), ((24, 40), 1, 15)],
)
def test_under_the_papers_count_the_rank_is_its_share_of_r(shape: tuple[int, int], cr: float, expected: int) -> None:
    assert len(encode(decaying_delta(*shape), lowrank(cr, "paper"))["sigma"]) == expected


@accountings
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32), (2, 300), (300, 2)])
def test_what_is_decoded_is_the_truncated_decomposition(accounting: str, shape: tuple[int, int]) -> None:
    delta = decaying_delta(*shape)
    codes = encode(delta, lowrank(1.5, accounting))
    k = len(codes["sigma"])
    assert k > 0
    assert {part: (code.dtype, tuple(code.shape)) for part, code in codes.items()} == {
        "sigma": (torch.float32, (k,)),
        "u": (torch.float16, (k, shape[0])),
        "v": (torch.float16, (k, shape[1])),
    }
    u, sigma, vh = np.linalg.svd(delta.double().numpy(), full_matrices=False)
    expected = (u[:, :k] * sigma[:k]) @ vh[:k]
    # u and v are stored in float16: 2⁻¹¹ relative in each, so about 2⁻¹⁰ of every pair's norm.
    error = np.linalg.norm(METHOD.decode(codes, "w", shape, 0).numpy() - expected)
    assert error <= 2**-10 * np.linalg.norm(sigma[:k])
