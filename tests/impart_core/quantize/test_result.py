"""What holds for every way to quantise: masked entries are zero, codes stand for the values, bad input is refused."""

import logging
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.base.errors import TensorValueError
from impart_core.quantize.curvature import Curvature
from impart_core.quantize.gptq import GptqOptions, sparse_gptq
from impart_core.quantize.grid import RowRange
from impart_core.quantize.result import Quantized, round_to_nearest
from impart_core.quantize.support import support_gptq
from tests.impart_core.quantize.samples import HESSIANS, factor_of, hessian_of, row_ranges

pytestmark = pytest.mark.usefixtures("one_thread")

Quantizer = Callable[..., Quantized]
quantizers = pytest.mark.parametrize("quantize", [round_to_nearest, sparse_gptq, support_gptq])
with_fallback = pytest.mark.parametrize("quantize", [sparse_gptq, support_gptq])
WHOLE = (RowRange(0, 4, 3),)


def same(one: Quantized, other: Quantized) -> bool:
    """Return whether every code, scale and zero point is equal."""
    pairs = zip(one.ranges, other.ranges, strict=True)
    return all(
        a.rows == b.rows
        and torch.equal(a.codes, b.codes)
        and torch.equal(a.scales, b.scales)
        and torch.equal(a.zeros, b.zeros)
        for a, b in pairs
    )


@quantizers
@given(data=st.data(), rows=st.integers(1, 6), columns=st.integers(1, 20), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_codes_of_any_input_stand_for_the_values_and_masked_ones_for_zero(
    quantize: Quantizer, data: st.DataObject, rows: int, columns: int, seed: int
) -> None:
    weight, mask = factor_of(rows, columns, data.draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])), seed)
    weight[seed % rows] *= data.draw(st.sampled_from([1.0, 0.0, 1e-20, 1e4]))
    hessian = hessian_of(data.draw(st.sampled_from(HESSIANS)), columns, seed)
    curvature = Curvature.of(hessian, "w", act_order=data.draw(st.booleans()))
    ranges = data.draw(row_ranges(rows, columns))
    options = GptqOptions(static_groups=data.draw(st.booleans()), block_size=data.draw(st.sampled_from([1, 5, 128])))
    found = quantize(weight, mask, curvature, ranges, "w", options)
    assert found.weight.shape == weight.shape
    assert bool(torch.isfinite(found.weight).all())
    assert not found.weight[~mask].any()
    assert torch.equal(torch.cat([part.dequantize(found.order) for part in found.ranges]), found.weight)
    assert found.error >= -1e-6 or found.damping is None
    for part, span in zip(found.ranges, ranges, strict=True):
        assert part.rows == span
        assert part.codes.shape == (span.stop - span.start, columns)
        assert part.scales.shape == part.zeros.shape == (span.stop - span.start, span.groups(columns))
        if span.bits == 16:
            assert part.codes.dtype == torch.float16
        else:
            assert (part.codes.dtype, part.scales.dtype, part.zeros.dtype) == (
                torch.uint8,
                torch.float16,
                torch.uint8,
            )
            assert int(part.codes.max()) <= span.levels
            assert int(part.zeros.max()) <= span.levels
    assert same(quantize(weight.clone(), mask, curvature, ranges, "w", options), found)


@quantizers
def test_what_is_given_is_left_alone_and_masked_values_do_not_matter(quantize: Quantizer) -> None:
    weight, mask = factor_of(4, 12, 0.5)
    before, curvature = weight.clone(), Curvature.of(hessian_of("correlated", 12), "w")
    found = quantize(weight, mask, curvature, WHOLE, "w")
    assert torch.equal(weight, before)
    assert same(quantize(torch.where(mask, weight, 9.0), mask, curvature, WHOLE, "w"), found)


@quantizers
def test_an_empty_factor_has_no_codes(quantize: Quantizer) -> None:
    curvature = Curvature.of(hessian_of("correlated", 5), "w")
    found = quantize(torch.zeros(0, 5), torch.zeros(0, 5, dtype=torch.bool), curvature, (), "w")
    assert (found.ranges, found.weight.shape) == ((), (0, 5))


@quantizers
def test_more_bits_come_closer_and_sixteen_are_the_values_as_half(quantize: Quantizer) -> None:
    weight, mask = factor_of(4, 40, 0.6)
    curvature = Curvature.of(hessian_of("correlated", 40), "w")
    errors = [quantize(weight, mask, curvature, (RowRange(0, 4, b),), "w").error for b in (2, 3, 4, 8, 16)]
    # Twice the levels, a fourth of the error; 16 bits have 11 of significand, but at every size.
    assert all(fine < coarse / 2 for coarse, fine in pairwise(errors))
    half = round_to_nearest(weight, mask, curvature, (RowRange(0, 4, 16),), "w").ranges[0].codes
    assert torch.equal(half, torch.where(mask, weight, 0.0).half())


@quantizers
def test_the_grid_takes_the_scales_as_they_are_stored(quantize: Quantizer) -> None:
    weight, mask = factor_of(4, 40, 0.6)
    curvature = Curvature.of(hessian_of("correlated", 40), "w")
    found = quantize(weight, mask, curvature, WHOLE, "w").ranges[0]
    exact = quantize(weight, mask, curvature, WHOLE, "w", GptqOptions(scale_dtype="float32")).ranges[0]
    assert (found.scales.dtype, exact.scales.dtype) == (torch.float16, torch.float32)
    assert not torch.equal(found.scales.float(), exact.scales)
    torch.testing.assert_close(found.scales.float(), exact.scales, rtol=2**-10, atol=0)


@with_fallback
def test_with_a_hessian_of_no_use_values_are_rounded_to_nearest_and_the_tensor_is_named(
    quantize: Quantizer, caplog: pytest.LogCaptureFixture
) -> None:
    weight, mask = factor_of(4, 12, 0.5)
    curvature = Curvature.of(hessian_of("indefinite", 12), "w")
    with caplog.at_level(logging.WARNING):
        found = quantize(weight, mask, curvature, WHOLE, "layers.3.o_proj:v")
    assert found.damping is None
    assert same(found, round_to_nearest(weight, mask, curvature, WHOLE, "layers.3.o_proj:v"))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "layers.3.o_proj:v" in caplog.text


SOUND = Curvature.of(torch.eye(2), "w", act_order=False)


@pytest.mark.parametrize(
    ("quantize", "torn"),
    [
        (sparse_gptq, replace(SOUND, root=torch.tensor([[1.0, 1e38], [0.0, 1e-6]]))),  # its inverse is infinite
        (support_gptq, replace(SOUND, hessian=torch.tensor([[1.0, 2.0], [2.0, 1.0]]))),  # it has no root
        (support_gptq, replace(SOUND, hessian=torch.tensor([[1e37, 0.9], [0.9, 1e-37]]), added=0.0)),  # 1e37 times w
    ],
)
def test_a_factor_that_turns_out_to_be_of_no_use_is_noticed_in_time(quantize: Quantizer, torn: Curvature) -> None:
    weight, mask = factor_of(4, 2)
    weight *= 2e4
    found = quantize(weight, mask, torn, WHOLE, "w")
    assert found.damping is None
    assert same(found, round_to_nearest(weight, mask, SOUND, WHOLE, "w"))


@with_fallback
def test_values_that_are_pushed_beyond_float16_are_its_largest(quantize: Quantizer) -> None:
    weight = torch.tensor([[65487.0, 65504.0]])  # rounds to 65472, which the other has to make up for
    curvature = Curvature.of(torch.tensor([[100.0, 9.9], [9.9, 1.0]]), "w", act_order=False)
    found = quantize(weight, weight > 0, curvature, (RowRange(0, 1, 16),), "w")
    assert found.damping == 0.01
    assert found.weight.tolist() == [[65472, 65504]]


@with_fallback
def test_with_more_damping_than_asked_for_the_result_says_so(quantize: Quantizer) -> None:
    hessian = torch.eye(12) - 0.05 * torch.ones(12, 12) * 1.9  # one eigenvalue is −0.14
    curvature = Curvature.of(hessian, "w")
    assert quantize(*factor_of(4, 12), curvature, WHOLE, "w").damping == pytest.approx(1.0)
    assert quantize(*factor_of(4, 12), Curvature.of(torch.eye(12), "w"), WHOLE, "w").damping == 0.01


@with_fallback
def test_columns_that_no_input_reaches_are_rounded_to_nearest(quantize: Quantizer) -> None:
    weight, mask = factor_of(4, 12)
    curvature = Curvature.of(hessian_of("dead columns", 12), "w")
    options = GptqOptions(static_groups=True)
    found = quantize(weight, mask, curvature, WHOLE, "w", options).weight
    nearest = round_to_nearest(weight, mask, curvature, WHOLE, "w", options).weight
    assert torch.equal(found[:, ::3], nearest[:, ::3])
    assert not torch.equal(found, nearest)


@quantizers
@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 7e4])
def test_values_that_cannot_be_quantised_are_refused_by_name(quantize: Quantizer, value: float) -> None:
    weight, mask = factor_of(4, 12)
    weight[2, 3] = value
    expected = "reaches 70000, beyond the 65504" if value == 7e4 else "holds NaN or infinity"
    with pytest.raises(TensorValueError, match=f"'layer.u' {expected}"):
        quantize(weight, mask, Curvature.of(torch.eye(12), "w"), WHOLE, "layer.u")


@quantizers
@pytest.mark.parametrize("ranges", [(), (RowRange(0, 3, 2),), (RowRange(0, 2, 2), RowRange(3, 4, 2))])
def test_ranges_that_are_not_the_rows_are_a_mistake(quantize: Quantizer, ranges: tuple[RowRange, ...]) -> None:
    with pytest.raises(ValueError, match="4 rows"):
        quantize(*factor_of(4, 12), Curvature.of(torch.eye(12), "w"), ranges, "w")
    with pytest.raises(ValueError, match=r"mask and .* Hessian"):
        quantize(*factor_of(4, 12), Curvature.of(torch.eye(11), "w"), WHOLE, "w")
