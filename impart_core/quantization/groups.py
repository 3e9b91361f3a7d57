"""Grids of what a mask keeps: groups are kept entries that follow each other in scan order.

So every scale serves as many codes at any sparsity, where groups of columns would have ever fewer entries. Of a whole
matrix whose rows are a multiple of the group long, these are the groups of columns that the field uses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from impart_core.quantization.grid import HALF, EntryGrid, RowRange, fit_grids


@dataclass(frozen=True)
class Groups:
    """The groups of a matrix; each range of rows has its own, and none at 16 bits.

    Attributes:
        mask: which entries are kept, bool, (rows, columns).
        ranges: the bits of rows, one range after the other.
        size: kept entries that share a grid, the last of a range perhaps fewer; None: all of a range.
    """

    mask: torch.Tensor
    ranges: tuple[RowRange, ...]
    size: int | None

    @cached_property
    def kept(self) -> tuple[int, ...]:
        """How many entries each range keeps."""
        return tuple(int(self.mask[span.rows].sum()) for span in self.ranges)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """How many groups each range has."""
        return tuple(group_count(kept, span, self.size) for kept, span in zip(self.kept, self.ranges, strict=True))

    def fit(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the grids between the least and the greatest kept value of each group, zero included.

        Args:
            values: float32, (rows, columns).

        Returns:
            Scales float16 and zero points uint8, both (groups,), range after range.
        """
        low, high = (torch.zeros(sum(self.counts), device=values.device) for _ in range(2))
        levels = torch.ones_like(low)
        for span, index, groups in self._indices():
            kept = values[span.rows][self.mask[span.rows]]
            low.scatter_reduce_(0, index, kept, "amin")
            high.scatter_reduce_(0, index, kept, "amax")
            levels[groups] = float(span.levels)
        return fit_grids(low, high, levels)

    def entries(self, scales: torch.Tensor, zeros: torch.Tensor) -> EntryGrid:
        """Return every entry's grid, that of a masked one being of no meaning; arguments as `fit` returns them."""
        shape, device = self.mask.shape, self.mask.device
        grid = EntryGrid(
            scales=torch.ones(shape, device=device),
            zeros=torch.zeros(shape, device=device),
            levels=torch.ones(shape, device=device),
            half=torch.zeros(shape, dtype=torch.bool, device=device),
        )
        for span in self.ranges:
            grid.levels[span.rows], grid.half[span.rows] = float(span.levels), span.bits == HALF
        for span, index, _ in self._indices():
            grid.scales[span.rows][self.mask[span.rows]] = scales.float()[index]
            grid.zeros[span.rows][self.mask[span.rows]] = zeros.float()[index]
        return grid

    def _indices(self) -> Sequence[tuple[RowRange, torch.Tensor, slice]]:
        """Return, of each range that has groups, the group of each kept entry, and which groups are its own."""
        found, first = [], 0
        for span, kept, count in zip(self.ranges, self.kept, self.counts, strict=True):
            if count:
                index = torch.arange(kept, device=self.mask.device) // (self.size or kept) + first
                found.append((span, index, slice(first, first + count)))
            first += count
        return found


def group_count(kept: int, span: RowRange, size: int | None) -> int:
    """Return how many groups so many kept entries of a range have."""
    return 0 if span.bits == HALF or not kept else -(-kept // (size or kept))
