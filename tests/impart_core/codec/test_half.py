"""16 bits a value: as exact for a delta of any size, and read as old artifacts have it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from impart_core.base.errors import CorruptArtifactError, TensorValueError
from impart_core.codec.half import decode_half, encode_half, half_exponent
from impart_core.codec.parts import nbytes
from impart_core.methods import METHODS
from impart_core.methods.base import Projection
from tests.impart_core.pipeline import config_of, small_options
from tests.support import decaying_delta

SIZES = [1e-30, 1e-12, 1e-8, 1e-6, 1e-3, 1.0, 1e3, 1e6, 1e30]


@pytest.mark.parametrize("size", SIZES)
def test_values_of_any_size_are_stored_to_half_a_unit(size: float) -> None:
    values = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)) * size
    codes = encode_half(values, "delta", "w")
    found = decode_half(codes["delta"], codes, "w")
    assert codes["delta"].dtype == torch.float16
    # 2^-11 of itself; what is 2^-28 of the largest and less, to a part of that.
    assert bool(((found - values).abs() <= 2**-11 * values.abs() + 2**-39 * values.abs().max()).all())
    assert nbytes(codes) == 2 * values.numel() + (("exponent" in codes) and 1)


@given(st.floats(2.0**-110, 2.0**127, width=32))
def test_the_largest_is_where_float16_is_at_its_best(largest: float) -> None:
    exponent = half_exponent(torch.tensor([0.0, -largest]), "w")
    assert 1.0 <= np.ldexp(largest, -exponent) <= 65504
    assert (exponent == 0) == (1.0 <= largest <= 65504)


def test_nothing_and_zeros_need_no_exponent() -> None:
    assert set(encode_half(torch.empty(0), "values", "w")) == {"values"}
    assert set(encode_half(torch.zeros(3), "values", "w")) == {"values"}


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_is_no_number_is_refused_by_name(value: float) -> None:
    with pytest.raises(TensorValueError, match=r"'layer\.w' holds NaN or infinity"):
        encode_half(torch.tensor([0.1, value]), "values", "layer.w")


def test_codes_without_an_exponent_are_read_as_they_are_in_either_dtype() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        stored = torch.tensor([1.5, -2.0], dtype=dtype)
        assert torch.equal(decode_half(stored, {}, "w"), stored.float())


@pytest.mark.parametrize("part", [torch.tensor([-127], dtype=torch.int8), torch.tensor([1, 2], dtype=torch.int8)])
def test_an_exponent_that_is_never_written_is_damage(part: torch.Tensor) -> None:
    with pytest.raises(CorruptArtifactError):
        decode_half(torch.ones(2).half(), {"exponent": part}, "w")


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("exponent", [-70, -40, 0, 40])
def test_a_method_does_to_a_delta_of_any_size_what_it_does_to_another(method: str, exponent: int) -> None:
    delta, config = decaying_delta(48, 64), config_of(6, method=method, options=small_options(method))
    size = 2.0**exponent
    codes = METHODS.get(method).encode(Projection.of(delta * size, "w"), config)
    plain = METHODS.get(method).encode(Projection.of(delta, "w"), config)
    found, expected = (METHODS.get(method).decode(each, "w", (48, 64), 0) for each in (codes, plain))
    assert torch.dist(found / size, expected) <= 1e-3 * torch.norm(expected)
