"""Sparse GPTQ: the plain loop gives the reference's results, and ours gives those of the plain loop."""

import pytest
import torch

from impart_core.quantization.curvature import Curvature
from impart_core.quantization.grid import Bits, RowRange
from impart_core.quantization.groups import Groups
from impart_core.quantization.solve import quantize_matrix
from tests.impart_core.quantization.plain import AlongOrder, on_grid, output_error, plain_gptq, upper_of
from tests.impart_core.quantization.samples import CASES, Case, case_names, factor_of, hessian_of

REFERENCE_BLOCK, REFERENCE_DAMPING = 32, 0.01
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
LADDER = (RowRange(0, 1, 16), RowRange(1, 2, 8), RowRange(2, 4, 4), RowRange(4, 7, 3), RowRange(7, 10, 2))


def plain(weight: torch.Tensor, groups: Groups, curvature: Curvature) -> torch.Tensor:
    """Return what the plain loop in float64 makes of what is kept, on the grids of the groups."""
    kept = torch.where(groups.mask, weight, 0.0)
    grid, order = groups.entries(*groups.fit(kept)), curvature.order
    upper = upper_of(curvature.hessian[order][:, order], curvature.added)
    return plain_gptq(kept.double(), groups.mask, upper, order, on_grid(grid, order))[0].float()


def masked(weight: torch.Tensor, groups: Groups, curvature: Curvature) -> torch.Tensor:
    """Return what Algorithm 2 makes of it."""
    return quantize_matrix(weight, groups, curvature, "w", solver="masked").values()


def assert_same_codes(found: torch.Tensor, expected: torch.Tensor) -> None:
    # One product in float32 of a scale that is itself rounded once or twice; a code off by one would be far more.
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_plain_loop_gives_the_values_and_the_error_of_the_reference(case: Case, dtype: torch.dtype) -> None:
    weight, mask, hessian = (case.part(part) for part in ("weight", "mask", "hessian"))
    damping = REFERENCE_DAMPING * float(hessian.diagonal().mean())
    upper = upper_of(hessian[case.order][:, case.order], damping).to(dtype)
    nearest = AlongOrder(case.bits, case.group_size or weight.shape[1], REFERENCE_BLOCK)
    found, error = plain_gptq((weight * mask).to(dtype), mask, upper, case.order, nearest)
    assert_same_codes(found.float(), case.part("quantized"))
    # The reference factors H⁻¹ in float32.
    assert error == pytest.approx(float(case.part("error")), rel=1e-5)


def test_all_cases_of_the_reference_are_here() -> None:
    assert {case.name for case in CASES} == case_names()


@cases
def test_on_the_references_cases_it_is_the_plain_loop_and_better_than_rounding_to_the_nearest(case: Case) -> None:
    weight, curvature = case.part("weight"), Curvature.of(case.part("hessian"), case.name)
    found = masked(weight, case.groups, curvature)
    assert_same_codes(found, plain(weight, case.groups, curvature))
    nearest = quantize_matrix(weight, case.groups, None, "w").values()
    errors = [output_error(weight * case.groups.mask, values, case.part("hessian")) for values in (found, nearest)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("columns", [1, 50, 64, 65, 150])  # errors go to later columns in blocks of 64
@pytest.mark.parametrize("keep", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_it_is_the_plain_loop_whatever_the_bits_the_mask_and_the_number_of_columns(
    bits: Bits, keep: float, columns: int
) -> None:
    weight, mask = factor_of(6, columns, keep)
    groups, curvature = Groups(mask, (RowRange(0, 6, bits),), 16), Curvature.of(hessian_of("correlated", columns), "w")
    assert_same_codes(masked(weight, groups, curvature), plain(weight, groups, curvature))


@pytest.mark.parametrize("kind", ["correlated", "rank deficient", "dead columns"])
@pytest.mark.parametrize("size", [None, 16])
def test_so_it_is_where_rows_have_different_bits(size: int | None, kind: str) -> None:
    weight, mask = factor_of(10, 80, 0.6)
    groups, curvature = Groups(mask, LADDER, size), Curvature.of(hessian_of(kind, 80), "w")
    found, expected = masked(weight, groups, curvature), plain(weight, groups, curvature)
    assert_same_codes(found[1:], expected[1:])
    # At 16 bits what is wanted may round the other way: by a step of float16.
    torch.testing.assert_close(found[:1], expected[:1], rtol=2**-10, atol=1e-7)


def test_acting_in_order_is_permuting_the_columns_and_permuting_them_back() -> None:
    weight, mask = factor_of(6, 50, 0.7)
    hessian, ranges = hessian_of("correlated", 50), (RowRange(0, 6, 3),)
    acted = quantize_matrix(weight, Groups(mask, ranges, None), Curvature.of(hessian, "w"), "w", solver="masked")
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    assert not torch.equal(order, torch.arange(50))
    permuted = Curvature.of(hessian[order][:, order], "w")
    assert torch.equal(permuted.order, torch.arange(50))
    natural = quantize_matrix(weight[:, order], Groups(mask[:, order], ranges, None), permuted, "w", solver="masked")
    assert torch.equal(acted.codes[:, order], natural.codes)
    assert torch.equal(acted.scales, natural.scales)


@pytest.mark.parametrize("kind", ["correlated", "rank deficient", "dead columns"])
def test_of_a_whole_weight_the_loops_count_is_the_error_of_the_outputs_far_below_rounding_to_nearest(kind: str) -> None:
    weight, mask = factor_of(8, 60)
    groups, curvature = Groups(mask, (RowRange(0, 8, 3),), None), Curvature.of(hessian_of(kind, 60), "w")
    grid, order = groups.entries(*groups.fit(weight)), curvature.order
    upper = upper_of(curvature.hessian[order][:, order], curvature.added)
    found, error = plain_gptq(weight.double(), mask, upper, order, on_grid(grid, order))
    damped = curvature.hessian + curvature.added * torch.eye(60)
    assert error == pytest.approx(output_error(weight, found, damped), rel=1e-6)
    assert_same_codes(masked(weight, groups, curvature), found.float())
    assert error < 0.6 * output_error(weight, quantize_matrix(weight, groups, None, "w").values(), damped)
