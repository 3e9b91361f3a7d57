"""Deltas kept whole at 16 bits, and tensors that have none."""

import pytest
import torch

from impart_core.base.errors import TensorValueError
from impart_core.codec.keep import encode_keep


@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 3, 4), (0, 4)])
def test_an_ordinary_delta_is_stored_in_float16_to_half_a_unit(shape: tuple[int, ...]) -> None:
    delta = torch.randn(shape)
    stored = encode_keep(delta, "w")
    assert (stored.dtype, stored.shape) == (torch.float16, delta.shape)
    # Round to nearest with an 11-bit significand: 2⁻¹¹ relative, and 2⁻²⁵ below the normal range.
    torch.testing.assert_close(stored.float(), delta, rtol=2**-11, atol=2**-25)


@pytest.mark.parametrize(
    ("value", "dtype"), [(65504.0, torch.float16), (65520.0, torch.bfloat16), (1e38, torch.bfloat16)]
)
def test_a_delta_that_float16_cannot_hold_is_stored_in_bfloat16(value: float, dtype: torch.dtype) -> None:
    stored = encode_keep(torch.tensor([1.0, -value]), "w")
    assert stored.dtype == dtype
    torch.testing.assert_close(stored.float(), torch.tensor([1.0, -value]), rtol=2**-8, atol=0)


def test_a_delta_that_no_16_bit_format_holds_is_refused_by_name() -> None:
    with pytest.raises(TensorValueError, match=r"delta of 'norm' reaches 3.4028\d*e\+38"):
        encode_keep(torch.tensor([3.4028e38]), "norm")
