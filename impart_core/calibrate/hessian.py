"""Sums of X·Xᵀ: half of each is worked out, in blocks that are added to side by side."""

import torch

from impart_core.base.parallel import in_order

_ROWS = 512  # of a block; sums of float32 depend on it


def add_product(total: torch.Tensor, rows: torch.Tensor) -> None:
    """Add rowsᵀ·rows to a sum, of which nothing but the upper triangle counts until it is mirrored.

    Some blocks are worked on at once; see `parallel.at_once`.

    Args:
        total: float32, (side, side).
        rows: float32, (tokens, side).
    """

    def add(first: int) -> None:
        last = first + _ROWS
        total[first:last, first:].addmm_(rows[:, first:last].T, rows[:, first:])

    for _ in in_order(add, range(0, len(total), _ROWS)):
        pass


def mirror(total: torch.Tensor) -> None:
    """Let the lower triangle of a square matrix be what the upper one is, in place."""
    for first in range(0, len(total), _ROWS):
        last = first + _ROWS
        total[last:, first:last] = total[first:last, last:].T
        block = total[first:last, first:last]
        block.copy_(block.triu() + block.triu(1).T)
