"""How much of a delta a code keeps: its direction, and its length along that (docs/methods.md)."""

from typing import NamedTuple

import torch

_ROWS = 256  # at once, in float64
_DIGITS = 5


class Fidelity(NamedTuple):
    """What is kept of a matrix.

    Attributes:
        cosine_squared: ρ² = ⟨ΔW, ΔŴ⟩²/(‖ΔW‖²·‖ΔŴ‖²), the share of ‖ΔW‖² that the best multiple of the code keeps.
        gain: ⟨ΔW, ΔŴ⟩/‖ΔW‖²: 1 where the code is unbiased, ρ² where it is a least-squares fit.
    """

    cosine_squared: float
    gain: float

    @property
    def noise(self) -> float:
        """‖ΔŴ − gΔW‖²/‖ΔW‖² = g²(1/ρ² − 1), g being the gain: what the code has beside the delta."""
        return self.gain**2 * (1 / self.cosine_squared - 1) if self.cosine_squared else 0.0


def fidelity_of(delta: torch.Tensor, code: torch.Tensor) -> Fidelity:
    """Measure a code against its delta, both (m, n) and float32; sums are in float64, results have five digits."""
    dot = energy = norm = 0.0
    for start in range(0, len(delta), _ROWS):
        ours, theirs = (matrix[start : start + _ROWS].double() for matrix in (delta, code))
        dot += float((ours * theirs).sum())
        energy += float((ours * ours).sum())
        norm += float((theirs * theirs).sum())
    if not energy or not norm:
        return Fidelity(0.0, 0.0)
    return Fidelity(*(float(f"{value:.{_DIGITS}g}") for value in (dot * (dot / energy) / norm, dot / energy)))
