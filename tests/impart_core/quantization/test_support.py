"""GPTQ on each row's support: plain GPTQ of what is kept, and better than Algorithm 2 for it."""

import pytest
import torch

from impart_core.quantization.curvature import Curvature
from impart_core.quantization.grid import Bits, EntryGrid, RowRange
from impart_core.quantization.groups import Groups
from impart_core.quantization.solve import Solver, quantize_matrix
from impart_core.quantization.support import codes_on_support
from tests.impart_core.quantization.plain import on_grid, output_error, plain_gptq, upper_of
from tests.impart_core.quantization.samples import CASES, Case, factor_of, hessian_of


def rows_of(grid: EntryGrid, rows: slice | torch.Tensor, columns: slice | torch.Tensor = slice(None)) -> EntryGrid:
    parts = (grid.scales, grid.zeros, grid.levels, grid.half)
    return EntryGrid(*(part[rows][:, columns] for part in parts))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_on_the_references_cases_outputs_differ_by_far_less(case: Case) -> None:
    weight, hessian = case.part("weight"), case.part("hessian")
    kept, curvature = torch.where(case.groups.mask, weight, 0.0), Curvature.of(hessian, case.name)
    solvers: tuple[Solver, ...] = ("support", "masked", "nearest")
    ours, paper, rounded = (
        output_error(kept, quantize_matrix(weight, case.groups, curvature, "w", solver=solver).values(), hessian)
        for solver in solvers
    )
    assert ours < 0.85 * min(rounded, paper)


@pytest.mark.parametrize("keep", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_each_row_is_plain_gptq_of_its_kept_columns_alone(bits: Bits, keep: float) -> None:
    weight, mask = factor_of(6, 90, keep)
    mask = mask[[0, 0, 0, 3, 4, 4]]  # some share a support, and each has its own values
    groups, curvature = Groups(mask, (RowRange(0, 6, bits),), 16), Curvature.of(hessian_of("correlated", 90), "w")
    made = quantize_matrix(weight, groups, curvature, "w")
    grid = groups.entries(made.scales, made.zeros)
    for row in range(6):
        kept = curvature.order[mask[row][curvature.order]]
        upper = upper_of(curvature.hessian[kept][:, kept], curvature.added)
        natural, whole = torch.arange(len(kept)), torch.ones(1, len(kept))
        nearest = on_grid(rows_of(grid, slice(row, row + 1), kept), natural)
        expected, _ = plain_gptq(weight[row : row + 1, kept].double(), whole, upper, natural, nearest)
        # As for the reference: a code off by one would be far more.
        torch.testing.assert_close(made.values()[row, kept], expected[0].float(), rtol=1e-6, atol=0)


def test_how_many_rows_are_worked_on_at_once_changes_nothing() -> None:
    """Of these rows, those that keep the most fill three batches of factors, and each alone is one."""
    rows, columns = 120, 600
    weight, _ = factor_of(rows, columns)
    shares = torch.linspace(0, 1, rows)[torch.randperm(rows, generator=torch.Generator().manual_seed(5))]
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(6)) < shares[:, None]
    mask[40:80] = mask[40:80:5].repeat_interleave(5, dim=0)
    ranges = (RowRange(0, 20, 16), RowRange(20, rows, 3))
    groups, curvature = Groups(mask, ranges, 16), Curvature.of(hessian_of("correlated", columns), "w")
    values = torch.where(mask, weight, 0.0)
    grid = groups.entries(*groups.fit(values))
    together = codes_on_support(values, mask, curvature, grid)
    assert together is not None
    for first in range(0, rows, 8):
        few = slice(first, first + 8)
        alone = codes_on_support(values[few], mask[few], curvature, rows_of(grid, few))
        assert alone is not None
        assert torch.equal(alone, together[few])
