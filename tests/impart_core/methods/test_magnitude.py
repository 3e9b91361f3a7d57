"""Magnitude: the largest entries, as many as fit together with where they are."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.blocks.request import CompressConfig
from impart_core.codec.parts import Codes, nbytes
from impart_core.codec.positions import position_bytes
from impart_core.delta.budget import budget_bytes
from impart_core.methods.base import Projection
from impart_core.methods.magnitude import Magnitude
from tests.impart_core.methods.requests import delta_of, one_entry
from tests.impart_core.pipeline import config_of

METHOD = Magnitude()
KINDS = ("decaying", "ties", "corner", "one entry")
sides = st.integers(2, 30)


def magnitude(cr: float, accounting: str = "bytes") -> CompressConfig:
    return config_of(cr, method="magnitude", accounting=accounting)


def encode(delta: torch.Tensor, config: CompressConfig) -> Codes:
    return METHOD.encode(Projection.of(delta, "w"), config)


def ranked(delta: torch.Tensor) -> list[int]:
    """Return all positions by falling magnitude, equal ones by position."""
    flat = delta.flatten().abs().tolist()
    return sorted((at for at, value in enumerate(flat) if value), key=lambda at: (-flat[at], at))


@given(kind=st.sampled_from(KINDS), m=sides, n=sides, cr=st.floats(1, 60), seed=st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_as_many_of_the_largest_entries_are_kept_as_fit_and_not_one_more(
    kind: str, m: int, n: int, cr: float, seed: int
) -> None:
    config = magnitude(cr)
    if cr > METHOD.highest_cr(m, n, config):
        return
    delta = delta_of(kind, m, n, seed)
    codes, order = encode(delta, config), ranked(delta)
    kept = len(codes["values"])
    costs = [1 + 2 * k + position_bytes(np.sort(np.array(order[:k], dtype=np.int64))) for k in (kept, kept + 1)]
    assert nbytes(codes) == costs[0] <= budget_bytes(m, n, cr) == METHOD.expected_bytes(m, n, config)
    assert kept == len(order) or costs[1] > budget_bytes(m, n, cr)
    expected = torch.zeros(m * n)
    expected[order[:kept]] = delta.flatten()[order[:kept]].half().float()
    assert torch.equal(METHOD.decode(codes, "w", (m, n), 0), expected.reshape(m, n))


@given(kind=st.sampled_from(KINDS), m=sides, n=sides, cr=st.floats(1, 60), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_under_the_papers_count_the_share_of_entries_is_one_over_the_ratio(
    kind: str, m: int, n: int, cr: float, seed: int
) -> None:
    config, delta = magnitude(cr, "paper"), delta_of(kind, m, n, seed)
    if cr > METHOD.highest_cr(m, n, config):
        return
    codes, order = encode(delta, config), ranked(delta)
    assert len(codes["values"]) == min(int(m * n / cr + 0.5), len(order))
    assert nbytes(codes) <= METHOD.expected_bytes(m, n, config)
    decoded = METHOD.decode(codes, "w", (m, n), 0)
    kept = torch.zeros(m * n, dtype=torch.bool)
    kept[order[: len(codes["values"])]] = True
    representable = delta.flatten().half() != 0
    assert torch.equal(decoded.flatten() != 0, kept & representable)


def test_of_equal_entries_the_first_are_kept() -> None:
    delta = torch.full((8, 8), -0.5)
    delta[7, 7] = 0.75
    kept = METHOD.decode(encode(delta, magnitude(4, "paper")), "w", (8, 8), 0).flatten().nonzero().flatten()
    assert kept.tolist() == [*range(15), 63]


def test_codes_are_values_in_order_and_the_streams_of_their_positions() -> None:
    delta = one_entry(4, 300, 700) + one_entry(4, 300, 20, 0.5)
    codes = encode(delta, magnitude(100))
    assert codes["values"].tolist() == [0.5, -0.25]
    # Gaps of 20 and 679: at 7 bits the quotients are 0 and 5, so that 8 bits of unary and 14 of remainders do.
    assert codes["width"].tolist() == [7]
    assert codes["quotients"].tolist() == [0b1000001]
    assert codes["remainders"].tolist() == [20 | (679 & 1) << 7, (679 & 127) >> 1]
