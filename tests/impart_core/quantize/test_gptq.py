"""Sparse GPTQ: the reference's results, whatever the blocks, the order and the company of other rows."""

import pytest
import torch

from impart_core.quantize.curvature import Curvature, output_error
from impart_core.quantize.gptq import GptqOptions, sparse_gptq
from impart_core.quantize.grid import RowRange
from impart_core.quantize.result import Quantized, round_to_nearest
from tests.impart_core.quantize.samples import CASES, Case, case_names, factor_of, hessian_of, plain_gptq

pytestmark = pytest.mark.usefixtures("one_thread")

REFERENCE = GptqOptions(block_size=32, scale_dtype="float32")
STATIC = GptqOptions(static_groups=True)
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def run(case: Case, options: GptqOptions) -> Quantized:
    return sparse_gptq(case.part("weight"), case.part("mask"), case.curvature, case.ranges, case.name, options)


def nearest(case: Case, options: GptqOptions) -> Quantized:
    return round_to_nearest(case.part("weight"), case.part("mask"), case.curvature, case.ranges, case.name, options)


@cases
def test_values_and_error_are_the_references(case: Case) -> None:
    found = run(case, REFERENCE)
    # One product in float32 of a scale that is itself rounded once or twice; a code off by one would be far more.
    torch.testing.assert_close(found.weight, case.part("quantized"), rtol=1e-6, atol=0)
    # The reference factors H⁻¹ in float32.
    assert found.error == pytest.approx(float(case.part("error")), rel=1e-5)


def test_all_cases_of_the_reference_are_here() -> None:
    assert {case.name for case in CASES} == case_names()


@cases
@pytest.mark.parametrize("options", [REFERENCE, GptqOptions(), STATIC], ids=["reference", "half scales", "static"])
def test_the_error_that_it_counts_is_below_that_of_rounding_to_nearest(case: Case, options: GptqOptions) -> None:
    assert run(case, options).error < 0.7 * nearest(case, options).error


@cases
def test_with_static_groups_outputs_differ_by_less_than_with_rounding_to_nearest(case: Case) -> None:
    found = output_error(case.part("weight"), run(case, STATIC).weight, case.part("hessian"))
    assert found < nearest(case, STATIC).error


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_it_is_the_plain_loop_in_float64(bits: int, act_order: bool) -> None:
    weight, mask = factor_of(6, 50, 0.7)
    curvature = Curvature.of(hessian_of("correlated", 50), "w", act_order)
    damped = (curvature.hessian.double() + curvature.added * torch.eye(50))[curvature.order][:, curvature.order]
    upper = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    expected = plain_gptq(weight.double() * mask, mask, upper, curvature.order, bits, 50)
    options = GptqOptions(scale_dtype="float32", block_size=16)
    found = sparse_gptq(weight, mask, curvature, (RowRange(0, 6, bits),), "w", options)
    torch.testing.assert_close(found.weight, expected.float(), rtol=1e-6, atol=0)  # as for the reference


@pytest.mark.parametrize("static", [True, False])
def test_blocks_change_nothing_where_grids_do_not_depend_on_them(static: bool) -> None:
    weight, mask = factor_of(6, 50, 0.7)
    curvature, span = Curvature.of(hessian_of("correlated", 50), "w"), RowRange(0, 6, 3, 16 if static else None)
    one, *others = (
        sparse_gptq(weight, mask, curvature, (span,), "w", GptqOptions(static_groups=static, block_size=size))
        for size in (1, 7, 50, 128)
    )
    for other in others:
        assert torch.equal(one.weight, other.weight)  # sums of other orders, but the same codes
        assert other.error == pytest.approx(one.error, rel=1e-5)


def test_acting_in_order_is_permuting_the_columns_and_permuting_them_back() -> None:
    weight, mask = factor_of(6, 50, 0.7)
    hessian, ranges = hessian_of("correlated", 50), (RowRange(0, 6, 3, 16),)
    acted = sparse_gptq(weight, mask, Curvature.of(hessian, "w"), ranges, "w")
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    assert not torch.equal(order, torch.arange(50))
    permuted = Curvature.of(hessian[order][:, order], "w", act_order=False)
    natural = sparse_gptq(weight[:, order], mask[:, order], permuted, ranges, "w")
    assert torch.equal(acted.ranges[0].codes[:, order], natural.ranges[0].codes)
    assert torch.equal(acted.ranges[0].scales, natural.ranges[0].scales)
    assert torch.equal(acted.weight[:, order], natural.weight)
    assert natural.order is None
    assert torch.equal(acted.order, order)


def test_static_groups_need_no_order_to_be_decoded() -> None:
    weight, mask = factor_of(6, 50, 0.7)
    curvature, ranges = Curvature.of(hessian_of("correlated", 50), "w"), (RowRange(0, 6, 3, 16),)
    found = sparse_gptq(weight, mask, curvature, ranges, "w", STATIC)
    assert found.order is None
    grids = round_to_nearest(weight, mask, curvature, ranges, "w", STATIC).ranges[0]
    assert torch.equal(found.ranges[0].scales, grids.scales)
    assert torch.equal(found.ranges[0].zeros, grids.zeros)


@pytest.mark.parametrize("options", [GptqOptions(), STATIC], ids=["along the order", "static"])
def test_ranges_of_rows_in_one_call_are_what_they_are_alone(options: GptqOptions) -> None:
    weight, mask = factor_of(9, 50, 0.7)
    curvature = Curvature.of(hessian_of("correlated", 50), "w")
    ranges = (RowRange(0, 2, 8, 8), RowRange(2, 3, 16), RowRange(3, 6, 3, 20), RowRange(6, 9, 2))
    together = sparse_gptq(weight, mask, curvature, ranges, "w", options)
    for part, span in zip(together.ranges, ranges, strict=True):
        own = (RowRange(0, span.stop - span.start, span.bits, span.group_size),)
        alone = sparse_gptq(weight[span.rows], mask[span.rows], curvature, own, "w", options).ranges[0]
        assert torch.equal(part.scales, alone.scales)
        assert torch.equal(part.zeros, alone.zeros)
        assert torch.equal(part.codes, alone.codes)


@pytest.mark.parametrize("kind", ["correlated", "rank deficient", "dead columns"])
def test_of_a_whole_weight_the_error_is_that_of_the_outputs_and_far_below_rounding_to_nearest(kind: str) -> None:
    weight, mask = factor_of(8, 60)
    curvature, ranges = Curvature.of(hessian_of(kind, 60), "w"), (RowRange(0, 8, 3),)
    found = sparse_gptq(weight, mask, curvature, ranges, "w")
    damped = curvature.hessian + curvature.added * torch.eye(60)
    assert found.error == pytest.approx(output_error(weight, found.weight, damped), rel=1e-3)  # sums in float32
    rounded = round_to_nearest(weight, mask, curvature, ranges, "w").weight
    assert found.error < 0.6 * output_error(weight, rounded, damped)
