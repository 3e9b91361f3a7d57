"""BitDelta: one bit an entry, and the scale that is best for it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.base.errors import TensorValueError
from impart_core.quantization.bitdelta import SignCodes, decode_signs, encode_signs, sign_bytes
from tests.impart_core.quantization.samples import factor_of
from tests.support import decaying_delta

scalings = pytest.mark.parametrize("per_row", [False, True])


@scalings
@given(m=st.integers(1, 12), n=st.integers(1, 20), keep=st.sampled_from([0.0, 0.3, 1.0]), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_kept_entries_are_their_sign_times_their_mean_magnitude(
    per_row: bool, m: int, n: int, keep: float, seed: int
) -> None:
    delta, mask = factor_of(m, n, keep, seed)
    codes = encode_signs(delta, "w", per_row, mask)
    found = decode_signs(codes, (m, n), mask)
    assert codes.scales.nbytes + codes.signs.nbytes == sign_bytes(int(mask.sum()), m if per_row else 1)
    assert not found[~mask].any()
    assert bool((found[mask].sign() == delta[mask].sign()).all())
    for rows in [slice(i, i + 1) for i in range(m)] if per_row else [slice(0, m)]:
        kept = delta[rows][mask[rows]].double().abs().numpy()
        if len(kept):
            np.testing.assert_allclose(found[rows][mask[rows]].abs(), kept.mean(), rtol=2**-23)  # one cast
    again = encode_signs(delta.clone(), "w", per_row, mask)
    assert torch.equal(again.scales, codes.scales)
    assert np.array_equal(again.signs, codes.signs)


@scalings
def test_no_other_scale_comes_closer(per_row: bool) -> None:
    delta = decaying_delta(24, 32)
    codes = encode_signs(delta, "w", per_row)
    best = float((delta - decode_signs(codes, (24, 32))).norm())
    for factor in (0.97, 1.03):
        other = SignCodes(codes.scales * factor, codes.signs)
        assert float((delta - decode_signs(other, (24, 32))).norm()) > best


def test_a_scale_for_each_row_comes_closer_than_one_for_all() -> None:
    delta = decaying_delta(24, 32) * torch.linspace(0.1, 1, 24)[:, None]
    one, each = (decode_signs(encode_signs(delta, "w", per_row), (24, 32)) for per_row in (False, True))
    assert float((delta - each).norm()) < 0.9 * float((delta - one).norm())


def test_zeros_have_signs_by_a_coin_that_lowers_what_they_do_to_outputs() -> None:
    delta = torch.randn(96, 300, generator=torch.Generator().manual_seed(0))
    delta[torch.rand(96, 300, generator=torch.Generator().manual_seed(1)) < 1 / 3] = 0.0
    inputs = torch.rand(300, 50, generator=torch.Generator().manual_seed(2))  # as after a ReLU
    zeros = delta == 0

    def error(decoded: torch.Tensor) -> float:
        return float(((decoded - delta) @ inputs).square().mean())

    codes = encode_signs(delta, "w", coin=5)
    found = decode_signs(codes, (96, 300))
    positive = torch.where(zeros, codes.scales, found)
    assert 0.45 < float((found[zeros] > 0).float().mean()) < 0.55
    assert torch.equal(found[~zeros].sign(), delta[~zeros].sign())
    assert error(found) < error(positive) / 2
    assert np.array_equal(encode_signs(delta, "w", coin=5).signs, codes.signs)
    assert not np.array_equal(encode_signs(delta, "w", coin=6).signs, codes.signs)


def test_signs_are_bits_row_by_row() -> None:
    codes = encode_signs(torch.tensor([[1.0, -2.0, 0.5], [-0.5, 3.0, -0.5]]), "w")
    assert codes.signs.tolist() == [0b010101]
    assert codes.scales.tolist() == [1.25]
    masked = encode_signs(
        torch.tensor([[1.0, -2.0], [-0.5, 3.0]]), "w", True, torch.tensor([[False, False], [True, True]])
    )
    assert masked.signs.tolist() == [0b10]
    assert masked.scales.tolist() == [0, 1.75]


def test_a_bit_an_entry_is_a_sixteenth_less_the_scales() -> None:
    assert sign_bytes(4096 * 4096) == 4096 * 4096 * 2 // 16 + 4
    assert sign_bytes(9, 3) == 2 + 12


@scalings
def test_a_delta_of_zeros_comes_back_as_zeros(per_row: bool) -> None:
    assert not decode_signs(encode_signs(torch.zeros(3, 5), "w", per_row), (3, 5)).any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_delta_that_is_not_finite_is_refused_by_name(value: float) -> None:
    delta = torch.ones(2, 2)
    delta[1, 0] = value
    with pytest.raises(TensorValueError, match=r"'layers\.0\.w' holds NaN or infinity"):
        encode_signs(delta, "layers.0.w")


def test_codes_of_another_shape_are_refused() -> None:
    codes = encode_signs(torch.ones(3, 5), "w", per_row=True)
    with pytest.raises(ValueError, match="3 scales for 5 rows"):
        decode_signs(codes, (5, 3))
    with pytest.raises(ValueError, match="24 codes of 1 bits take 3 bytes, not 2"):
        decode_signs(codes, (3, 8))
