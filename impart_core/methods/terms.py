"""A decoded delta as a function of gains: multipliers of numbers that are stored anyway, which training may set.

A gain takes no bytes. What it multiplies is held in far less memory than the matrix, where that is exact.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

_LEVELS = 1 << 8  # values of a matrix that a byte tells apart
_LOOKED_AT = 1 << 12  # entries in which there may be as few
_FILLED = 1 / 8  # of a matrix: with its position an entry takes 8 bytes
_EXACT_BITS = 53  # integers below 2^53 are float64's, and so are their sums and products
_AT_ONCE = 1 << 21  # entries of a product in float64
PRODUCT_BYTES = 8 * _AT_ONCE


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

    def portable(self) -> torch.Tensor:
        """Return ΔŴ at gains of 1, float32, (m, n), in the same bits on every machine.

        A product of float32 is rounded as the processor's library orders its sums. Here both factors are rounded to
        integers so small that sums of their products are exact in float64, in any order: up to K = 2,047 they have 21
        bits, of the largest entry of each factor.
        """
        if self.left is None:
            return self.right
        bits = (_EXACT_BITS - len(self.left).bit_length()) // 2
        (left, low), (right, high) = _integers(self.left, bits), _integers(self.right, bits)
        m, n = left.shape[1], right.shape[1]
        left *= 2.0 ** (low + high)  # a power of 2 changes no digit
        found, step = torch.empty(m, n), max(1, _AT_ONCE // max(1, n))
        for row in range(0, m, step):
            found[row : row + step] = left[:, row : row + step].T @ right
        return found

    def held(self, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return `at` with what it needs on a device."""
        if self.left is not None:
            left, right = self.left.to(device), self.right.to(device)
            return lambda gains: (left * gains[:, None]).T @ right
        matrix = _compact(self.right, device)
        return lambda gains: matrix() * gains[:, None]


def _integers(values: torch.Tensor, bits: int) -> tuple[torch.Tensor, int]:
    """Return values as integers of so many bits and a sign, float64, and the exponent of 2 of their unit."""
    largest = float(values.abs().max()) if values.numel() else 0.0
    exponent = math.frexp(largest)[1] - bits
    return values.double().mul_(2.0**-exponent).round_(), exponent


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
