"""Singular vectors as symbols: which are kept, at which steps, and with which scales, within some bytes."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from impart_core.codec.tables import FloatArray, Int64Array
from impart_core.delta.factors import Factors
from impart_core.delta.svd import numerical_rank
from impart_core.quantization.ecsq import FACTORS, PART, SMALLEST_RATIO, Stored, gained, head_bytes
from impart_core.quantization.rate_distortion import (
    DROPPED,
    LARGEST,
    SIGNS,
    Float32Array,
    Trials,
    allocate,
    quantised,
    total_worth,
)

STEPS = (2.6, 2.1, 1.75, 1.5, 1.25, 1.0, 0.8, 0.6, 0.42, 0.3, 0.2, 0.13, 0.09)
_LAST_RESORT = (SIGNS, LARGEST)  # of the first pair, where it fits at no step
_OTHERS = ([0], [1], [0, 3, 7])  # tried where tables weigh
_FEW_BYTES = 1 << 11  # there they do
_SCALE_BYTES = 1
_TRIES = 8


@dataclass(frozen=True)
class Directions:
    """Singular vectors at hand, each scaled to unit variance.

    Attributes:
        u: (K, m).
        v: (K, n).
        weights: σ_k and what u_k and v_k were divided by, float64, (K,).
    """

    u: Float32Array
    v: Float32Array
    weights: FloatArray

    @classmethod
    def of(cls, factors: Factors, shape: tuple[int, int], most: int) -> "Directions":
        """Take the leading vectors, as far as they are no rounding, `most` at most."""
        sigma = factors.sigma.cpu().double().numpy()
        count = min(most, numerical_rank(sigma, *shape))
        count = int((sigma[:count] > sigma[0] * SMALLEST_RATIO).sum())
        u, spread_u = _unit(factors.u[:count])
        v, spread_v = _unit(factors.v[:count])
        return cls(u, v, sigma[:count] * spread_u * spread_v)

    def encoded(self, budget: int, p: float, gain: float, name: str) -> tuple[Stored | None, float]:
        """Return what is kept within a budget of bytes, None where nothing fits; and its energy.

        Args:
            budget: bytes.
            p: the exponent of singular values when bytes are shared out.
            gain: see `gained`.
            name: the tensor, for errors.
        """
        trials = Trials.of(self.u, self.v, STEPS, _SCALE_BYTES)
        relative = self.weights / self.weights.max()
        worth = relative[:, None] ** p * np.sqrt(trials.kept)
        room = float(budget - head_bytes(len(STEPS)) - 1)
        for _ in range(_TRIES):
            chosen = _chosen(trials, worth, room)
            if (chosen == DROPPED).all():
                break
            used = np.unique(chosen[chosen != DROPPED])
            stored, energy = self._stored({STEPS[step]: (chosen == step).nonzero()[0] for step in used}, gain, name)
            over = len(stored.packed()[PART]) - budget
            if over <= 0:
                return stored, energy
            room -= over
        for step in _LAST_RESORT:
            stored, energy = self._stored({step: np.array([0])}, 0.0, name)
            if len(stored.packed()[PART]) <= budget:
                return stored, energy
        return None, 0.0

    def _stored(self, rows_at: Mapping[float, Int64Array], gain: float, name: str) -> tuple[Stored, float]:
        """Return symbols and scales of the directions that take each step, and how much of ‖ΔW‖² they keep."""
        runs, scales, energy = [], [], 0.0
        for step, rows in rows_at.items():
            sides = [(own := side[rows], quantised(own, step)) for side in (self.u, self.v)]
            dots = [(own.astype(np.float64) * symbols).sum(axis=1) for own, symbols in sides]
            norms = [(symbols.astype(np.float64) ** 2).sum(axis=1) for _, symbols in sides]
            energies = [(own.astype(np.float64) ** 2).sum(axis=1) for own, _ in sides]
            kept = dots[0] ** 2 / (norms[0] * energies[0]) * dots[1] ** 2 / (norms[1] * energies[1])
            scales.append(self.weights[rows] * gained(dots[0] * dots[1], norms[0] * norms[1], kept, gain))
            runs.append(np.concatenate([symbols for _, symbols in sides], axis=1).ravel())
            energy += float((self.weights[rows] ** 2 * kept * energies[0] * energies[1]).sum())
        shape = self.u.shape[1], self.v.shape[1]
        return Stored.of(FACTORS, shape, runs, np.concatenate(scales), name), energy


def _chosen(trials: Trials, worth: FloatArray, room: float) -> Int64Array:
    """Return the step of each direction; where tables weigh, from few steps if these come out better."""
    best = allocate(trials, worth, room)
    if room < _FEW_BYTES:
        for steps in _OTHERS:
            found = allocate(trials.only(steps), worth[:, steps], room)
            chosen = np.where(found >= 0, np.array(steps)[found], found)
            if total_worth(worth, chosen) > total_worth(worth, best):
                best = chosen
    return best


def _unit(vectors: torch.Tensor) -> tuple[Float32Array, FloatArray]:
    """Return vectors as rows scaled to unit variance, float32, and what they were divided by, float64."""
    exact = vectors.float().cpu().numpy()
    spread = np.sqrt((exact.astype(np.float64) ** 2).mean(axis=1))
    spread[spread == 0] = 1.0
    return (exact / spread[:, None]).astype(np.float32), spread
