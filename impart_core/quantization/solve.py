"""A masked matrix to codes: its grids from what is kept, then one of the ways to round on them."""

import logging
from typing import Literal

import torch

from impart_core.quantization.curvature import Curvature
from impart_core.quantization.gptq import codes_under_mask
from impart_core.quantization.grid import EntryGrid
from impart_core.quantization.groups import Groups
from impart_core.quantization.streams import QuantizedMatrix
from impart_core.quantization.support import codes_on_support

logger = logging.getLogger(__name__)

# support: GPTQ of each row on what its mask keeps of it. masked: Algorithm 2, one factor for all rows, which costs less
# and makes up for errors in masked entries too, where that is lost. nearest: no activations.
Solver = Literal["support", "masked", "nearest"]


def quantize_matrix(
    values: torch.Tensor,
    groups: Groups,
    curvature: Curvature | None,
    name: str,
    *,
    solver: Solver = "support",
    along_rows: bool = False,
) -> QuantizedMatrix:
    """Quantise what a mask keeps of a matrix.

    Args:
        values: float32, (rows, columns), finite; masked entries play no part.
        groups: its mask, bits and groups.
        curvature: of the inputs that its columns meet; None: every entry is rounded by itself.
        name: the tensor, for warnings.
        solver: how to round.
        along_rows: whether inputs meet the rows instead, so that errors are made up for within a column.
    """
    masked = torch.where(groups.mask, values, 0.0)
    scales, zeros = groups.fit(masked)
    grid = groups.entries(scales, zeros)
    if along_rows:
        codes = _solve(masked.T, groups.mask.T, grid.T, curvature, name, solver).T.contiguous()
    else:
        codes = _solve(masked, groups.mask, grid, curvature, name, solver)
    return QuantizedMatrix(groups, scales, zeros, codes)


def _solve(
    values: torch.Tensor,
    mask: torch.Tensor,
    grid: EntryGrid,
    curvature: Curvature | None,
    name: str,
    solver: Solver,
) -> torch.Tensor:
    if curvature is None or solver == "nearest":
        return grid.nearest(values)
    # Where nothing is masked both are the same, and one factor serves all rows.
    whole = bool(mask.all())
    solve = codes_under_mask if solver == "masked" or whole else codes_on_support
    codes = solve(values.contiguous(), mask, curvature, grid)
    if codes is None:
        logger.warning(
            "%s: the Hessian of its inputs is not positive definite, or too near to that, with any damping; "
            "its values are rounded to nearest. More calibration text may help.",
            name,
        )
        return grid.nearest(values)
    return codes
