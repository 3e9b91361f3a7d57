"""GPTQ for sparse weights (paper §3.3, Algorithm 2), with lazy batches of columns as in GPTQ (its §3.3).

Column after column is rounded, and what that changes of the outputs is made up for in the columns to come: with
e = (w − q)/U_jj, column i > j becomes w_i − U_ji·e, U being upper triangular with H⁻¹ = UᵀU.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field

from impart_core.quantize.curvature import Curvature
from impart_core.quantize.grid import HALF, RowRange, row_grids
from impart_core.quantize.result import (
    GridOptions,
    Quantized,
    RangeCodes,
    gather,
    masked_weight,
    rounded_instead,
    static_grids,
)


class GptqOptions(GridOptions):
    """Settings of Algorithm 2.

    Attributes:
        block_size: columns whose errors are gathered before they go to the columns after them, in one product.
            Groups that follow the order of quantisation take their grids from finished blocks.
    """

    block_size: int = Field(default=128, ge=1)


def sparse_gptq(
    weight: torch.Tensor,
    mask: torch.Tensor,
    curvature: Curvature,
    ranges: Sequence[RowRange],
    name: str,
    options: GptqOptions | None = None,
) -> Quantized:
    """Quantise rows along their columns: of U, (K, m), or of V, (K, n), each range of rows with its own bits.

    Column j is multiplied by its mask, rounded, and only the error of what is kept is made up for; masked entries
    stay exactly zero. Rows do not depend on each other. Where the Hessian is of no use, values are rounded to
    nearest with a warning.

    Args:
        weight: any floating dtype, (rows, columns).
        mask: which entries are kept, (rows, columns).
        curvature: of the inputs, (columns, columns); made once for all weights that share them.
        ranges: bits and group size of rows, one range after the other.
        name: the tensor, for errors and the warning.
        options: None: the defaults.

    Raises:
        TensorValueError: a weight is NaN, infinite, or beyond float16.
        ValueError: shapes do not fit each other, or the ranges are not the rows one after the other.
    """
    options = options or GptqOptions()
    values = masked_weight(weight, mask, curvature, ranges, name)
    if curvature.root is None:
        return rounded_instead(weight, mask, curvature, ranges, name, options)
    work = _Work.of(values, mask, curvature, ranges, options)
    error = work.run(curvature.inverse_root)
    if not (math.isfinite(error) and bool(torch.isfinite(work.values).all())):
        return rounded_instead(weight, mask, curvature, ranges, name, options)
    found, order = work.codes_as_they_lie(curvature), options.order(curvature)
    return Quantized(found, gather(found, values, order), error, order, curvature.damping)


@dataclass
class _Work:
    """The state of one run: columns first and in the order of quantisation, so that each one is contiguous.

    Attributes:
        values: what is left to quantise, then what was quantised, float32, (columns, rows).
        keep: the mask as float32, (columns, rows).
        codes: float32, (columns, rows).
        scales: of each column's groups, float32, (columns, rows).
        zeros: likewise.
        levels: the highest code of each row, float32, (rows,).
        ranges: the ranges of rows.
        options: the settings.
    """

    values: torch.Tensor
    keep: torch.Tensor
    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    levels: torch.Tensor
    ranges: Sequence[RowRange]
    options: GptqOptions

    @classmethod
    def of(
        cls,
        values: torch.Tensor,
        mask: torch.Tensor,
        curvature: Curvature,
        ranges: Sequence[RowRange],
        options: GptqOptions,
    ) -> "_Work":
        """Lay out the weight, (rows, columns); static grids are known beforehand."""
        ordered = values.T[curvature.order].contiguous()
        keep = mask.T[curvature.order].float().contiguous()
        scales, zeros = torch.ones_like(ordered), torch.zeros_like(ordered)
        levels = torch.zeros(ordered.shape[1], device=values.device)
        for span in ranges:
            levels[span.rows] = float(span.levels)
        if options.static_groups:
            for span, (scale, zero) in zip(ranges, static_grids(values, ranges, options, None), strict=True):
                if span.bits != HALF:
                    groups = curvature.order // span.width(len(ordered))
                    scales[:, span.rows], zeros[:, span.rows] = scale.float().T[groups], zero.float().T[groups]
        return cls(ordered, keep, torch.zeros_like(ordered), scales, zeros, levels, ranges, options)

    def run(self, upper: torch.Tensor) -> float:
        """Quantise all columns in place and return the error.

        Args:
            upper: U with H⁻¹ = UᵀU, in the order of quantisation, (columns, columns).
        """
        columns, block, error = len(self.values), self.options.block_size, 0.0
        for start in range(0, columns, block):
            stop = min(start + block, columns)
            errors = torch.zeros_like(self.values[start:stop])
            into = upper[start:stop, start:stop].T.contiguous()  # row j: what each earlier column's error does to j
            for j in range(start, stop):
                if not self.options.static_groups:
                    self._fit(j)
                self._round(j, errors, into[j - start], j - start)
            self.values[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1)
            error += 0.5 * float(errors.double().square().sum())
        return error

    def _fit(self, j: int) -> None:
        """Take the grids of groups that begin at column j; from there on only finished blocks have touched them."""
        for span in self.ranges:
            width = span.width(len(self.values))
            if span.bits != HALF and j % width == 0:
                scale, zero = row_grids(self.values[j : j + width, span.rows].T, span, self.options.dtype)
                self.scales[j : j + width, span.rows] = scale[:, 0].float()
                self.zeros[j : j + width, span.rows] = zero[:, 0].float()

    def _round(self, j: int, errors: torch.Tensor, into: torch.Tensor, done: int) -> None:
        """Round column j after what the `done` earlier ones of its block leave to it; keep its error."""
        target = torch.addmv(self.values[j], errors[:done].T, into[:done], alpha=-1).mul_(self.keep[j])
        scale, zero = self.scales[j], self.zeros[j]
        code = torch.minimum((target / scale).round_().add_(zero).clamp_(min=0), self.levels)
        self.codes[j] = code
        torch.mul(code.sub_(zero), scale, out=self.values[j])  # a masked entry has the code of zero
        for span in self.ranges:
            if span.bits == HALF:
                self.values[j, span.rows] = target[span.rows].half().float()
        torch.div(target.sub_(self.values[j]), into[done], out=errors[done])

    def codes_as_they_lie(self, curvature: Curvature) -> tuple[RangeCodes, ...]:
        """Return the codes with columns as they lie; grids in the order that groups follow."""
        columns, place = len(self.values), torch.argsort(curvature.order)
        along = slice(None) if self.options.order(curvature) is not None else place
        found = []
        for span in self.ranges:
            first = slice(0, columns if span.groups(columns) else 0, span.width(columns))  # column of each group
            scales = self.scales[along][first, span.rows].T.contiguous().to(self.options.dtype)
            zeros = self.zeros[along][first, span.rows].T.contiguous().to(torch.uint8)
            kept = self.values[:, span.rows].half() if span.bits == HALF else self.codes[:, span.rows].to(torch.uint8)
            found.append(RangeCodes(span, kept[place].T.contiguous(), scales, zeros))
        return tuple(found)
