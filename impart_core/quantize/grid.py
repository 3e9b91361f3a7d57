"""Asymmetric min–max grids for groups of columns along a row (paper §3.3; the grid of GPTQ).

Code c of a group stands for (c − zero)·scale. The grid always contains zero, and its scale is rounded to the dtype
that is stored before any code is computed, so that decoding gives exactly what encoding worked with.
"""

from dataclasses import dataclass
from typing import Literal

import torch

Bits = Literal[2, 3, 4, 8, 16]
HALF: Bits = 16  # no grid: values are kept as float16
SMALLEST_HALF = 2.0**-24  # the least positive float16


@dataclass(frozen=True)
class RowRange:
    """Rows that are quantised alike.

    Attributes:
        start: the first row.
        stop: the row after the last.
        bits: of each code.
        group_size: columns that share a scale and a zero point; None: all of a row.
    """

    start: int
    stop: int
    bits: Bits
    group_size: int | None = None

    @property
    def rows(self) -> slice:
        """Which rows these are."""
        return slice(self.start, self.stop)

    @property
    def levels(self) -> int:
        """The highest code."""
        return (1 << self.bits) - 1

    def width(self, columns: int) -> int:
        """Return how many columns a group has, the last of a row perhaps fewer."""
        return min(columns, self.group_size or columns)

    def groups(self, columns: int) -> int:
        """Return how many groups a row has; none at 16 bits."""
        return 0 if self.bits == HALF else -(-columns // self.width(columns))


@dataclass(frozen=True)
class EntryGrid:
    """The grid of every entry of a matrix, each (rows, columns).

    Attributes:
        scales: float32.
        zeros: zero points, float32.
        levels: the highest codes, float32.
        half: bool: which entries have no grid but are kept as float16.
    """

    scales: torch.Tensor
    zeros: torch.Tensor
    levels: torch.Tensor
    half: torch.Tensor

    @property
    def T(self) -> "EntryGrid":
        """The grids of the matrix with rows and columns exchanged."""
        return EntryGrid(self.scales.T, self.zeros.T, self.levels.T, self.half.T)

    def nearest(self, values: torch.Tensor) -> torch.Tensor:
        """Return the code nearest to each value, float32, or the value itself in float16 where there is no grid."""
        codes = torch.minimum((torch.round(values / self.scales) + self.zeros).clamp_(min=0), self.levels)
        return torch.where(self.half, nearest_half(values), codes)

    def values(self, codes: torch.Tensor) -> torch.Tensor:
        """Return what codes stand for, float32."""
        return torch.where(self.half, codes, (codes - self.zeros) * self.scales)


def nearest_half(values: torch.Tensor) -> torch.Tensor:
    """Return the nearest values that float16 holds, float32, like `values`."""
    limit = torch.finfo(torch.float16).max
    return values.clamp(-limit, limit).half().float()


def fit_grid(values: torch.Tensor, levels: int, scale_dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the grids between the smallest and the largest value of groups, zero included.

    A float16 scale is rounded up, so that the grid covers its group: every value in it is at most half a step from
    a grid point. Groups whose step float16 cannot hold get the nearest one that it can.

    Args:
        values: the groups, float32, (…, size), finite.
        levels: the highest code.
        scale_dtype: float16 as it is stored, or float32.

    Returns:
        Scales in that dtype and zero points uint8, both (…,); every scale is positive and finite.
    """
    return fit_bounds(values.amin(dim=-1), values.amax(dim=-1), torch.tensor(float(levels)), scale_dtype)


def fit_bounds(
    low: torch.Tensor, high: torch.Tensor, levels: torch.Tensor, scale_dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the grids of groups from their least and greatest values, float32, (…,); see `fit_grid`.

    `levels` are the highest codes, float32, (…,) or one for all.
    """
    low, high, levels = low.clamp(max=0), high.clamp(min=0), levels.to(low.device)
    exact = torch.where(high > low, (high - low) / levels, 1.0)
    scales = _round_up(exact) if scale_dtype == torch.float16 else _positive(exact)
    zeros = torch.minimum(torch.round(-low / scales.float()).clamp_(min=0), levels).to(torch.uint8)
    return scales, zeros


def row_grids(
    values: torch.Tensor, rows: RowRange, scale_dtype: torch.dtype = torch.float16
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scales and zero points of all groups of rows, (rows, groups); see `fit_grid`.

    Args:
        values: the rows of the range, float32, (rows, columns), their columns in the order that groups follow.
        rows: their bits and group size.
        scale_dtype: float16 or float32.
    """
    count, columns = values.shape
    groups, width = rows.groups(columns), rows.width(columns)
    padded = torch.nn.functional.pad(values, (0, groups * width - columns)) if groups else values[:, :0]
    return fit_grid(padded.reshape(count, groups, width), rows.levels, scale_dtype)  # zeros change no grid


def column_groups(columns: int, width: int, order: torch.Tensor | None = None) -> torch.Tensor:
    """Return the group that each column is in, int64, (columns,).

    Args:
        columns: how many there are.
        width: columns of a group.
        order: the columns in the order that groups follow, (columns,); None: as they lie.
    """
    groups = torch.arange(columns) // width
    if order is None:
        return groups
    placed = torch.empty_like(groups)
    placed[order.cpu()] = groups
    return placed


def dequantize(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Return (code − zero)·scale, float32, (rows, columns).

    Args:
        codes: uint8, (rows, columns).
        scales: float16 or float32, (rows, groups).
        zeros: uint8, (rows, groups).
        groups: the group of each column; see `column_groups`.
    """
    return (codes.float() - zeros.float()[:, groups]) * scales.float()[:, groups]


def _round_up(exact: torch.Tensor) -> torch.Tensor:
    """Return the least float16 not below each value, from its least positive to its largest."""
    exact = exact.clamp(SMALLEST_HALF, torch.finfo(torch.float16).max)
    nearest = exact.half()
    above = (nearest.view(torch.int16) + 1).view(torch.float16)  # the next float16, of positive ones
    return torch.where(nearest.float() < exact, above, nearest)


def _positive(exact: torch.Tensor) -> torch.Tensor:
    limits = torch.finfo(torch.float32)
    return exact.clamp(limits.tiny, limits.max)
