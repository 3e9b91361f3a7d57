"""GPTQ for sparse weights (paper §3.3, Algorithm 2), with lazy batches of columns as in GPTQ (its §3.3).

Column after column is rounded, and what that changes of the outputs is made up for in the columns to come: with
e = (w − q)/U_jj, column i > j becomes w_i − U_ji·e, U being upper triangular with H⁻¹ = UᵀU.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from pydantic import Field

from impart_core.quantize.curvature import Curvature
from impart_core.quantize.grid import HALF, EntryGrid, RowRange, nearest_half, row_grids
from impart_core.quantize.result import (
    GridOptions,
    Quantized,
    RangeCodes,
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

    block_size: int = Field(default=64, ge=1)


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
    if not math.isfinite(error):  # nor is it where any value is not
        return rounded_instead(weight, mask, curvature, ranges, name, options)
    natural = torch.argsort(curvature.order)
    found, quantized = work.codes_as_they_lie(natural), work.values[natural].T.contiguous()
    return Quantized(found, quantized, error, options.order(curvature), curvature.damping)


def codes_under_mask(
    values: torch.Tensor, mask: torch.Tensor, curvature: Curvature, grid: EntryGrid
) -> tuple[torch.Tensor, float] | None:
    """Return the codes of a matrix whose grids are given; all as for `support.codes_on_support`.

    The error is Algorithm 2's own count.
    """
    if curvature.root is None:
        return None
    work = _Work.on_grid(values, mask, curvature, grid)
    error = work.run(curvature.inverse_root)
    natural = torch.argsort(curvature.order)
    codes = (
        torch.where(work.half, work.values, work.steps - work.lowest[work.places])
        if work.half is not None
        else (work.steps - work.lowest[work.places])
    )
    return (codes[natural].T.contiguous(), error) if math.isfinite(error) else None


@dataclass
class _Work:
    """The state of one run: columns first and in the order of quantisation, so that each one is contiguous.

    Steps are codes less the zero point, so that zero is zero in every grid. Columns have places in the order that
    groups follow; a cell is places between which no group of any range begins, so that all its columns share grids.

    Attributes:
        values: what is left to quantise, then what was quantised, float32, (columns, rows).
        keep: the mask as float32, (columns, rows).
        steps: found so far, float32, (columns, rows).
        cells: the cell of each place, (columns,).
        places: the place of each column, (columns,).
        begins: by place, the ranges of which a group begins there whose grids are still to be taken.
        scales: of each cell's groups, float32, (cells, rows).
        lowest: the steps that their grids begin with, float32, (cells, rows).
        highest: the steps that they end with, likewise.
        ranges: the ranges of rows.
        options: the settings.
        half: which entries are kept as float16, bool, (columns, rows); None: none.
    """

    values: torch.Tensor
    keep: torch.Tensor
    steps: torch.Tensor
    cells: list[int]
    places: list[int]
    begins: dict[int, list[RowRange]]
    scales: torch.Tensor
    lowest: torch.Tensor
    highest: torch.Tensor
    ranges: Sequence[RowRange]
    options: GptqOptions
    half: torch.Tensor | None

    @classmethod
    def on_grid(cls, values: torch.Tensor, mask: torch.Tensor, curvature: Curvature, grid: EntryGrid) -> "_Work":
        """Lay out a matrix, (rows, columns), whose entries all have their grids: each column is a cell."""
        ordered, keep, half = (part.T.contiguous()[curvature.order] for part in (values, mask, grid.half))
        return cls(
            values=ordered,
            keep=keep.float(),
            steps=torch.empty_like(ordered),
            cells=list(range(len(ordered))),
            places=curvature.order.tolist(),
            begins={},
            scales=grid.scales.T.contiguous(),
            lowest=-grid.zeros.T.contiguous(),
            highest=(grid.levels - grid.zeros).T.contiguous(),
            ranges=(),
            options=GptqOptions(),
            half=half if bool(half.any()) else None,
        )

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
        ordered, keep = (part.T.contiguous()[curvature.order] for part in (values, mask))
        columns, rows = ordered.shape
        begins: dict[int, list[RowRange]] = {0: []}
        for span in ranges:
            for place in range(0, columns if span.groups(columns) else 0, span.width(columns)):
                begins.setdefault(place, []).append(span)
        cells = [cell - 1 for cell in accumulate(int(place in begins) for place in range(columns))]
        places = curvature.order.tolist() if options.static_groups else list(range(columns))
        scales, lowest, highest = (torch.zeros(len(begins), rows, device=values.device) for _ in range(3))
        scales.fill_(1.0)  # of rows at 16 bits, whose steps are not used
        steps = torch.empty_like(ordered)
        half = torch.zeros(rows, dtype=torch.bool, device=values.device)
        for span in ranges:
            half[span.rows] = span.bits == HALF
        work = cls(
            ordered,
            keep.float(),
            steps,
            cells,
            places,
            begins,
            scales,
            lowest,
            highest,
            ranges,
            options,
            half.expand(columns, rows) if bool(half.any()) else None,
        )
        if options.static_groups:
            for span, (scale, zero) in zip(ranges, static_grids(values, ranges, options, None), strict=True):
                for group in range(span.groups(columns)):
                    work._lay(span, group * span.width(columns), scale[:, group], zero[:, group])
            begins.clear()
        return work

    @torch.inference_mode()  # a column takes a few microseconds, of which bookkeeping for gradients is a part
    def run(self, upper: torch.Tensor) -> float:
        """Quantise all columns in place and return the error.

        Args:
            upper: U with H⁻¹ = UᵀU, in the order of quantisation, (columns, columns).
        """
        columns, block, error = len(self.values), self.options.block_size, 0.0
        for start in range(0, columns, block):
            stop = min(start + block, columns)
            diagonal = upper.diagonal()[start:stop, None]
            errors = self._quantize_block(slice(start, stop), upper[start:stop, start:stop] / diagonal)
            self.values[stop:].addmm_((upper[start:stop, stop:] / diagonal).T, errors, alpha=-1)
            error += 0.5 * float((errors / diagonal).square_().sum(dtype=torch.float64))
        return error

    def _quantize_block(self, block: slice, upper: torch.Tensor) -> torch.Tensor:
        """Round the columns of a block one after the other, and return their errors, (block, rows).

        Args:
            block: which columns.
            upper: U_ij/U_ii among them, what an error in column i does to column j, (block, block).
        """
        errors = torch.zeros_like(self.values[block])
        done = errors.T  # those to come are zero as yet
        grids = list(zip(self.scales.unbind(), self.lowest.unbind(), self.highest.unbind(), strict=True))
        parts = (part[block].unbind() for part in (self.values, self.keep, self.steps))
        columns = zip(*parts, errors.unbind(), upper.T.contiguous().unbind(), strict=True)
        for j, (value, keep, step, error, into) in enumerate(columns, block.start):
            for span in self.begins.get(j, ()):
                self._fit(span, j)
            scale, lowest, highest = grids[self.cells[self.places[j]]]
            target = torch.addmv(value, done, into, alpha=-1).mul_(keep)
            torch.div(target, scale, out=step).round_().clamp_(lowest, highest)
            torch.mul(step, scale, out=value)
            if self.half is not None:
                value.copy_(torch.where(self.half[j], nearest_half(target), value))
            torch.sub(target, value, out=error)
        return errors

    def _fit(self, span: RowRange, j: int) -> None:
        """Take the grids of the groups that begin at column j; from there on only finished blocks changed anything."""
        scales, zeros = row_grids(
            self.values[j : j + span.width(len(self.values)), span.rows].T, span, self.options.dtype
        )
        self._lay(span, j, scales[:, 0], zeros[:, 0])

    def _lay(self, span: RowRange, place: int, scale: torch.Tensor, zero: torch.Tensor) -> None:
        """Set the grids, scales and zero points both (rows,), of the groups that begin at a place."""
        last = min(place + span.width(len(self.cells)), len(self.cells)) - 1
        cells = slice(self.cells[place], self.cells[last] + 1)
        self.scales[cells, span.rows] = scale.float()
        self.lowest[cells, span.rows] = -zero.float()
        self.highest[cells, span.rows] = span.levels - zero.float()

    def codes_as_they_lie(self, natural: torch.Tensor) -> tuple[RangeCodes, ...]:
        """Return the codes with columns as they lie; `natural` says where each is in the order of quantisation."""
        columns, found = len(self.values), []
        cells = torch.tensor(self.cells, device=natural.device)
        own = cells[torch.tensor(self.places, device=natural.device)]  # of each column
        for span in self.ranges:
            first = cells[: columns if span.groups(columns) else 0 : span.width(columns)]  # of each group
            scales, zeros = self.scales[first, span.rows].T, -self.lowest[first, span.rows].T
            if span.bits == HALF:
                codes = self.values[:, span.rows].half()
            else:
                codes = (self.steps[:, span.rows] - self.lowest[own, span.rows]).to(torch.uint8)
            parts = (codes[natural].T, scales.to(self.options.dtype), zeros.to(torch.uint8))
            found.append(RangeCodes(span, *(part.contiguous() for part in parts)))
        return tuple(found)
