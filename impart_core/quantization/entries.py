"""A matrix's own entries as symbols, at the step that keeps most within some bytes.

Entropies and cosines follow from how many entries have about each magnitude, so that a step is tried in no time.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from impart_core.codec.entropy import MOST_MAGNITUDE
from impart_core.quantization.ecsq import ENTRIES, PART, Stored, gained
from impart_core.quantization.rate_distortion import SIGNS, Float32Array, FloatArray, quantised, run_bytes

_DROPPED_BITS = 13  # of a float32's mantissa of 23: magnitudes are told apart to 1 in 1024
_STEPS_AN_OCTAVE = 16
_OCTAVES = 14
_TRIES, _WIDER = 16, 1.01  # of a step that does not fit, and how much wider the next is


@dataclass(frozen=True)
class Magnitudes:
    """How many entries have about each magnitude.

    Attributes:
        counts: entries, (bins,).
        means: their mean magnitude, (bins,), rising.
    """

    counts: FloatArray
    means: FloatArray

    @classmethod
    def of(cls, entries: Float32Array) -> "Magnitudes":
        """Count the entries of a matrix."""
        magnitudes = np.abs(entries).ravel()
        keys = magnitudes.view(np.int32) >> _DROPPED_BITS
        keys -= keys.min()
        counts = np.bincount(keys).astype(np.float64)
        sums = np.bincount(keys, magnitudes)
        some = counts > 0
        return cls(counts[some], sums[some] / counts[some])

    def at(self, step: float) -> tuple[float, float]:
        """Return the bytes of all symbols at a step and their table, and cos² of entries and symbols."""
        symbols = np.ones(len(self.means)) if math.isinf(step) else np.rint(self.means / step).clip(max=MOST_MAGNITUDE)
        counts = np.bincount(symbols.astype(np.int64), self.counts)
        dot = (self.counts * self.means * symbols).sum()
        energy, norm = (self.counts * self.means**2).sum(), (self.counts * symbols**2).sum()
        return run_bytes(counts) if norm else 0.0, float(dot**2 / (energy * norm)) if norm else 0.0

    def best_step(self, room: float) -> tuple[float, float]:
        """Return the step that keeps most within some bytes, `SIGNS` among them, and cos²; 0 where none fits."""
        coarsest = 2 * float(self.means[-1])
        steps = [coarsest * 2 ** (-k / _STEPS_AN_OCTAVE) for k in range(1, _STEPS_AN_OCTAVE * _OCTAVES)]
        found = (SIGNS, 0.0)
        for step in (SIGNS, *steps):
            size, kept = self.at(step)
            if size <= room and kept > found[1]:
                found = step, kept
            if size > room and not math.isinf(step):
                break
        return found


def encode_entries(entries: torch.Tensor, budget: int, step: float, gain: float, name: str) -> Stored | None:
    """Return entries, (m, n), as symbols, none where they take more than a budget of bytes.

    Args:
        entries: float32, on the CPU.
        budget: bytes.
        step: from `Magnitudes.best_step`.
        gain: see `gained`.
        name: the tensor, for errors.
    """
    values = entries.numpy().ravel()
    exact = values.astype(np.float64)
    for widened in range(_TRIES):
        symbols = quantised(values, step * _WIDER**widened)
        if not symbols.any():
            break
        dot, norm, energy = (exact * symbols).sum(), (symbols.astype(np.float64) ** 2).sum(), (exact**2).sum()
        scale = gained(np.array([dot]), np.array([norm]), np.array([dot**2 / (norm * energy)]), gain)
        stored = Stored.of(ENTRIES, [symbols], scale, name)
        if len(stored.packed()[PART]) <= budget:
            return stored
    return None
