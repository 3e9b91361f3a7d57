"""GPTQ on each row's support: plain GPTQ of what is kept, and better than Algorithm 2 for it."""

from unittest.mock import patch

import pytest
import torch

from impart_core.quantize import support
from impart_core.quantize.curvature import Curvature, output_error
from impart_core.quantize.gptq import GptqOptions, sparse_gptq
from impart_core.quantize.grid import RowRange
from impart_core.quantize.result import GridOptions, round_to_nearest
from impart_core.quantize.support import support_gptq
from tests.impart_core.quantize.samples import CASES, Case, factor_of, hessian_of, plain_gptq

pytestmark = pytest.mark.usefixtures("one_thread")

STATIC = GridOptions(static_groups=True)


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_on_the_references_cases_outputs_differ_by_far_less(case: Case, static: bool) -> None:
    given = (case.part("weight"), case.part("mask"), case.curvature, case.ranges, case.name)
    ours = output_error(given[0], support_gptq(*given, GridOptions(static_groups=static)).weight, case.part("hessian"))
    paper = sparse_gptq(*given, GptqOptions(static_groups=static, block_size=32)).weight
    rounded = round_to_nearest(*given, GridOptions(static_groups=static)).error
    assert ours < 0.8 * min(rounded, output_error(given[0], paper, case.part("hessian")))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_each_row_is_gptq_of_its_kept_columns_alone(bits: int) -> None:
    weight, mask = factor_of(6, 50, 0.5)
    curvature = Curvature.of(hessian_of("correlated", 50), "w")
    damped = curvature.hessian.double() + curvature.added * torch.eye(50)
    options = GridOptions(scale_dtype="float32")
    found = support_gptq(weight, mask, curvature, (RowRange(0, 6, bits),), "w", options).weight
    for row in range(6):
        kept = curvature.order[mask[row][curvature.order]]
        upper = torch.linalg.cholesky(torch.linalg.inv(damped[kept][:, kept]), upper=True)
        whole = torch.ones(1, len(kept), dtype=torch.bool)
        natural = torch.arange(len(kept))
        expected = plain_gptq(weight[row : row + 1, kept].double(), whole, upper, natural, bits, len(kept))
        # As for the reference: a code off by one would be far more.
        torch.testing.assert_close(found[row, kept], expected[0].float(), rtol=1e-6, atol=0)


def test_with_nothing_masked_it_is_gptq() -> None:
    weight, mask = factor_of(6, 50)
    curvature = Curvature.of(hessian_of("correlated", 50), "w")
    ranges = (RowRange(0, 1, 16), RowRange(1, 3, 8, 16), RowRange(3, 6, 2, 20))
    ours = support_gptq(weight, mask, curvature, ranges, "w", STATIC)
    plain = sparse_gptq(weight, mask, curvature, ranges, "w", GptqOptions(static_groups=True))
    torch.testing.assert_close(ours.weight[1:], plain.weight[1:], rtol=0, atol=0)
    torch.testing.assert_close(ours.weight[:1], plain.weight[:1], rtol=2**-10, atol=1e-7)  # one step of float16
    assert ours.error == pytest.approx(plain.error, rel=1e-4)


@pytest.mark.parametrize("keep", [0.1, 0.5, 1.0])
def test_the_error_is_that_of_the_outputs_under_any_mask(keep: float) -> None:
    weight, mask = factor_of(8, 60, keep)
    curvature = Curvature.of(hessian_of("correlated", 60), "w")
    found = support_gptq(weight, mask, curvature, (RowRange(0, 8, 3, 16),), "w")
    damped = curvature.hessian + curvature.added * torch.eye(60)
    expected = output_error(torch.where(mask, weight, 0.0), found.weight, damped)
    assert found.error == pytest.approx(expected, rel=1e-3)  # sums in float32


def test_how_many_rows_are_worked_on_at_once_changes_nothing() -> None:
    weight, mask = factor_of(12, 40)
    mask = torch.rand(12, 40, generator=torch.Generator().manual_seed(5)) < torch.linspace(0, 1, 12)[:, None]
    curvature, ranges = Curvature.of(hessian_of("correlated", 40), "w"), (RowRange(0, 2, 16), RowRange(2, 12, 3, 16))
    together = support_gptq(weight, mask, curvature, ranges, "w")
    for most in (1, 3000):
        with patch.object(support, "_MOST_ENTRIES", most):
            assert torch.equal(support_gptq(weight, mask, curvature, ranges, "w").weight, together.weight)
