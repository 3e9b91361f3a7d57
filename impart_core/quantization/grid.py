"""Asymmetric min–max grids for groups of entries (paper §3.3; the grid of GPTQ).

Code c of a group stands for (c − zero)·scale. The grid always contains zero, and its scale is rounded to float16, as
it is stored, before any code is computed, so that decoding gives exactly what encoding worked with.
"""

from dataclasses import dataclass
from typing import Literal

import torch

Bits = Literal[2, 3, 4, 8, 16]
HALF: Bits = 16  # no grid: values are kept as float16
_SMALLEST_HALF = 2.0**-24  # the least positive float16


@dataclass(frozen=True, slots=True)
class RowRange:
    """Rows that are quantised alike.

    Attributes:
        start: the first row.
        stop: the row after the last.
        bits: of each code.
    """

    start: int
    stop: int
    bits: Bits

    @property
    def rows(self) -> slice:
        """Which rows these are."""
        return slice(self.start, self.stop)

    @property
    def levels(self) -> int:
        """The highest code."""
        return (1 << self.bits) - 1


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


def fit_grids(low: torch.Tensor, high: torch.Tensor, levels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the grids between the least and the greatest value of groups, zero included.

    A scale is rounded up, so that the grid covers its group: every value in it is at most half a step from a grid
    point. Groups whose step float16 cannot hold get the nearest one that it can.

    Args:
        low: the least values, float32, (groups,), finite.
        high: the greatest, likewise.
        levels: the highest codes, float32, (groups,).

    Returns:
        Scales float16 and zero points uint8, both (groups,); every scale is positive and finite.
    """
    low, high = low.clamp(max=0), high.clamp(min=0)
    scales = _round_up(torch.where(high > low, (high - low) / levels, 1.0))
    zeros = torch.minimum(torch.round(-low / scales.float()).clamp_(min=0), levels).to(torch.uint8)
    return scales, zeros


def _round_up(exact: torch.Tensor) -> torch.Tensor:
    """Return the least float16 not below each value, from its least positive to its largest."""
    exact = exact.clamp(_SMALLEST_HALF, torch.finfo(torch.float16).max)
    nearest = exact.half()
    above = (nearest.view(torch.int16) + 1).view(torch.float16)  # the next float16, of positive ones
    return torch.where(nearest.float() < exact, above, nearest)
