"""Sums of X·Xᵀ: half of each is worked out, in blocks that are added to side by side; and how far they are believed.

A sum over few tokens says little of most pairs of columns, and GPTQ that trusts it does more harm than rounding. So it
is shrunk towards its diagonal, or towards what all experts of a layer see together, by the weight that is best for
inputs that are normal: the closed form of Chen, Wiesel, Eldar, Hero 2010 (OAS), taken of correlations.
"""

from collections.abc import Iterable
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Hessian:
    """2·X·Xᵀ averaged over tokens.

    Attributes:
        matrix: float32, (side, side).
        tokens: how many tokens it is of.
    """

    matrix: torch.Tensor
    tokens: int

    @property
    def is_short(self) -> bool:
        """Whether it is of fewer tokens than columns, so that it knows nothing of some directions."""
        return self.tokens < len(self.matrix)


def shrinkage(hessian: Hessian) -> float:
    """Return the weight of the target, 0 to 1, that a Hessian is shrunk by: 1 without tokens, near 0 with many.

    With R the correlations of p columns that are not dead, q = ‖R‖² and t tokens it is
    ((1 − 2/p)·q + p²)/((t + 1 − 2/p)·(q − p)), about (p²/q)/t: the number of directions that matter over tokens.
    """
    matrix = hessian.matrix
    diagonal = matrix.diagonal()
    scale = torch.where(diagonal > 0, diagonal.clamp_min(torch.finfo(matrix.dtype).tiny).rsqrt(), 0.0)
    p, t = int((diagonal > 0).sum()), hessian.tokens
    blocks = (matrix[first : first + _ROWS] * scale * scale[first : first + _ROWS, None] for first in _starts(matrix))
    q = sum(float(block.double().square().sum()) for block in blocks)
    if t == 0 or p < 2 or q <= p:
        return 1.0
    return min(1.0, ((1 - 2 / p) * q + p * p) / ((t + 1 - 2 / p) * (q - p)))


def shrink(hessian: Hessian) -> None:
    """Shrink a Hessian towards its diagonal, in place."""
    diagonal = hessian.matrix.diagonal().clone()
    hessian.matrix.mul_(1 - shrinkage(hessian))
    hessian.matrix.diagonal().copy_(diagonal)


def shrink_together(hessians: Iterable[Hessian]) -> None:
    """Shrink the Hessians of a layer's experts towards that of all their tokens, in place."""
    own = list(hessians)
    pooled = Hessian(torch.zeros_like(own[0].matrix), sum(each.tokens for each in own))
    for each in own:
        pooled.matrix.add_(each.matrix, alpha=each.tokens / max(1, pooled.tokens))
    shrink(pooled)
    for each in own:
        each.matrix.lerp_(pooled.matrix, shrinkage(each))


def _starts(matrix: torch.Tensor) -> range:
    return range(0, len(matrix), _ROWS)
