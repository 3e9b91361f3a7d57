"""GPTQ for sparse weights (paper §3.3, Algorithm 2), with lazy batches of columns as in GPTQ (its §3.3).

Column after column is rounded, and what that changes of the outputs is made up for in the columns to come: with
e = (w − q)/U_jj, column i > j becomes w_i − U_ji·e, U being upper triangular with H⁻¹ = UᵀU.
"""

from dataclasses import dataclass

import torch

from impart_core.quantization.curvature import Curvature
from impart_core.quantization.feedback import fed_back
from impart_core.quantization.grid import EntryGrid, nearest_half


def codes_under_mask(
    values: torch.Tensor, mask: torch.Tensor, curvature: Curvature, grid: EntryGrid
) -> torch.Tensor | None:
    """Return the codes of a matrix whose grids are given, float32, (rows, columns), by Algorithm 2.

    Column j is multiplied by its mask, rounded, and only the error of what is kept is made up for, in masked entries
    too. Rows do not depend on each other. Masked entries have the code of zero; those without a grid have their values.

    Args:
        values: float32, (rows, columns), zero where masked.
        mask: which entries are kept, (rows, columns).
        curvature: of the inputs, (columns, columns).
        grid: every entry's grid.

    Returns:
        None where the Hessian is of no use.
    """
    if curvature.root is None:
        return None
    columns = _Columns.of(values, mask, curvature.order, grid)
    if not _quantize(columns, curvature.inverse_root):
        return None
    codes = columns.steps - columns.lowest
    if columns.half is not None:
        codes = torch.where(columns.half, columns.values, codes)
    return codes[torch.argsort(curvature.order)].T.contiguous()


@dataclass(frozen=True)
class _Columns:
    """The state of one run: columns first and in the order of quantisation, so that each one is contiguous.

    Steps are codes less the zero point, so that zero is zero in every grid.

    Attributes:
        values: what is left to quantise, then what was quantised, float32, (columns, rows).
        keep: the mask as float32, (columns, rows).
        steps: found so far, float32, (columns, rows).
        scales: of the grids, float32, (columns, rows).
        lowest: the steps that the grids begin with, likewise.
        highest: the steps that they end with, likewise.
        half: which entries are kept as float16, bool, (columns, rows); None: none.
    """

    values: torch.Tensor
    keep: torch.Tensor
    steps: torch.Tensor
    scales: torch.Tensor
    lowest: torch.Tensor
    highest: torch.Tensor
    half: torch.Tensor | None

    @classmethod
    def of(cls, values: torch.Tensor, mask: torch.Tensor, order: torch.Tensor, grid: EntryGrid) -> "_Columns":
        """Lay out a matrix, (rows, columns), and its grids."""

        def ordered(part: torch.Tensor) -> torch.Tensor:
            return part.T.contiguous()[order]

        return cls(
            values=ordered(values),
            keep=ordered(mask.float()),
            steps=torch.empty_like(values.T, memory_format=torch.contiguous_format),
            scales=ordered(grid.scales),
            lowest=ordered(-grid.zeros),
            highest=ordered(grid.levels - grid.zeros),
            half=ordered(grid.half) if bool(grid.half.any()) else None,
        )


@torch.inference_mode()  # a column takes a few microseconds, of which bookkeeping for gradients is a part
def _quantize(columns: _Columns, upper: torch.Tensor) -> bool:
    """Quantise all columns in place and return whether everything is finite.

    Args:
        columns: the state.
        upper: U with H⁻¹ = UᵀU, in the order of quantisation, (columns, columns).
    """
    parts = (columns.keep, columns.steps, columns.scales, columns.lowest, columns.highest)
    keep, steps, scales, lowest, highest = (part.unbind() for part in parts)

    def round_column(j: int, target: torch.Tensor, value: torch.Tensor) -> None:
        target.mul_(keep[j])
        torch.div(target, scales[j], out=steps[j]).round_().clamp_(lowest[j], highest[j])
        torch.mul(steps[j], scales[j], out=value)
        if columns.half is not None:
            value.copy_(torch.where(columns.half[j], nearest_half(target), value))

    def spread(block: slice, others: slice) -> torch.Tensor:
        return upper[block, others] / diagonal[block]

    diagonal, finite = upper.diagonal()[:, None], True
    for block, errors in fed_back(columns.values, spread, round_column):
        finite &= bool(torch.isfinite((errors / diagonal[block]).square_().sum(dtype=torch.float64)))
    return finite
