"""A decoded delta as a function of gains: multipliers of numbers that are stored anyway, which training may set.

A gain takes no bytes. What it multiplies is held in far less memory than the matrix, where that is exact.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

_LEVELS = 1 << 8  # values of a matrix that a byte tells apart
_LOOKED_AT = 1 << 12  # entries in which there may be as few
_FILLED = 1 / 8  # of a matrix: with its position an entry takes 8 bytes


@dataclass(frozen=True)
class Terms:
    """A decoded delta ΔŴ(g), (m, n); with all gains 1 it is what is stored.

    Σ_k g_k a_k b_kᵀ where there are factors; else diag(g)·M, or g·M.

    Attributes:
        right: b, float32, (K, n); or M, (m, n).
        left: a, float32, (K, m); None where there are no factors.
        per_row: whether each row of M has a gain; else all of it has one.
    """

    right: torch.Tensor
    left: torch.Tensor | None = None
    per_row: bool = False

    @property
    def count(self) -> int:
        """Number of gains; 0 where nothing is kept that they could change."""
        if not bool(self.right.any()):
            return 0
        return len(self.right) if self.left is not None or self.per_row else 1

    def at(self, gains: torch.Tensor) -> torch.Tensor:
        """Return ΔŴ(g), float32, (m, n), differentiable in the gains, (count,)."""
        return self.held(gains.device)(gains)

    def held(self, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return `at` with what it needs on a device."""
        if self.left is not None:
            left, right = self.left.to(device), self.right.to(device)
            return lambda gains: (left * gains[:, None]).T @ right
        matrix = _compact(self.right, device)
        return lambda gains: matrix() * gains[:, None]


def _compact(matrix: torch.Tensor, device: torch.device) -> Callable[[], torch.Tensor]:
    """Return what gives a matrix, float32, (m, n), and holds it as non-zero entries or as levels where it has few."""
    flat = matrix.flatten()
    if int(flat.count_nonzero()) <= _FILLED * len(flat):
        at = flat.nonzero()[:, 0]
        values, places = flat[at].to(device), at.to(torch.int32).to(device)
        return lambda: torch.zeros(len(flat), device=device).index_copy_(0, places.long(), values).reshape(matrix.shape)
    unit = matrix.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    relative = matrix / unit
    if len(torch.unique(relative.flatten()[:_LOOKED_AT])) <= _LEVELS:
        levels, codes = torch.unique(relative, return_inverse=True)
        if len(levels) <= _LEVELS and torch.equal(levels[codes] * unit, matrix):
            table, rows, held = levels.to(device), unit.to(device), codes.to(torch.uint8).to(device)
            return lambda: table[held.int()] * rows
    whole = matrix.to(device)
    return lambda: whole
