"""Magnitude: the largest entries, as many as fit together with where they are."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.codec.parts import nbytes
from impart_core.codec.positions import position_bytes
from impart_core.delta.budget import budget_bytes
from impart_core.methods.base import Projection
from tests.impart_core.methods.codes import at_16_bits
from tests.impart_core.methods.requests import decode, delta_of, encode, one_entry, request_of, requests

sides = st.integers(2, 30)


def ranked(delta: torch.Tensor) -> list[int]:
    """Return all positions by falling magnitude, equal ones by position."""
    flat = delta.flatten().abs().tolist()
    return sorted((at for at, value in enumerate(flat) if value), key=lambda at: (-flat[at], at))


@pytest.mark.parametrize("accounting", ["bytes", "paper"])
@given(kind=st.sampled_from(["decaying", "ties", "corner", "one entry"]), m=sides, n=sides, data=st.data())
@settings(max_examples=100, deadline=None)
def test_the_largest_entries_are_kept_as_many_as_fit_or_one_of_as_many_as_the_ratio(
    accounting: str, kind: str, m: int, n: int, data: st.DataObject
) -> None:
    request = data.draw(requests("magnitude", m, n, accounting=accounting))
    delta = delta_of(kind, m, n, request.seed)
    projection, order = Projection.of(delta, "w"), ranked(delta)
    codes = encode(projection, request)
    kept = len(codes["values"])
    costs = [2 + 2 * k + position_bytes(np.sort(np.array(order[:k], dtype=np.int64))) for k in (kept, kept + 1)]
    assert nbytes(codes) + ("exponent" not in codes) == costs[0]
    if accounting == "paper":
        assert kept == min(int(m * n / request.cr + 0.5), len(order))
    else:
        assert kept == len(order) or costs[1] > budget_bytes(m, n, request.cr)
    expected = torch.zeros(m * n)
    expected[order[:kept]] = at_16_bits(delta.flatten()[order[:kept]])
    assert torch.equal(decode(codes, projection, request), expected.reshape(m, n))


def test_of_equal_entries_the_first_are_kept() -> None:
    delta = torch.full((8, 8), -0.5)
    delta[7, 7] = 0.75
    projection, request = Projection.of(delta, "w"), request_of("magnitude", 4, accounting="paper")
    kept = decode(encode(projection, request), projection, request).flatten().nonzero().flatten()
    assert kept.tolist() == [*range(15), 63]


def test_codes_are_values_in_order_and_the_streams_of_their_positions() -> None:
    delta = one_entry(4, 300, 700) + one_entry(4, 300, 20, 0.5)
    codes = encode(Projection.of(delta, "w"), request_of("magnitude", 100))
    assert (codes["values"].tolist(), codes["exponent"].tolist()) == ([2**14, -(2**13)], [-15])
    # Gaps of 20 and 679: at 7 bits the quotients are 0 and 5, so that 8 bits of unary and 14 of remainders do.
    assert codes["width"].tolist() == [7]
    assert codes["quotients"].tolist() == [0b1000001]
    assert codes["remainders"].tolist() == [20 | (679 & 1) << 7, (679 & 127) >> 1]
