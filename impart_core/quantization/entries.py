"""A matrix's own entries as symbols, at the step that keeps most within some bytes.

Entropies and cosines follow from how many entries have about each magnitude, so that a step is tried in no time.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from impart_core.codec.tables import MOST_MAGNITUDE, FloatArray, table_bytes
from impart_core.quantization.ecsq import ENTRIES, PART, Stored
from impart_core.quantization.trials import SIGNS, quantised

_DROPPED_BITS = 13  # of a float32's mantissa of 23: magnitudes are told apart to 1 in 1024
_BINS = 1 << (31 - _DROPPED_BITS)
_OCTAVES = 14  # of steps below the largest entry
_HALVINGS = 24  # of these
_TRIES, _WIDER = 16, 1.01  # of a step that does not fit, and how much wider the next is


@dataclass(frozen=True)
class Magnitudes:
    """How many entries have about each magnitude.

    Attributes:
        counts: entries, (bins,).
        means: the magnitude in the middle of each bin, (bins,), rising.
    """

    counts: FloatArray
    means: FloatArray

    @classmethod
    def of(cls, entries: torch.Tensor) -> "Magnitudes":
        """Count the entries of a matrix, float32, on any device."""
        keys = entries.abs().flatten().view(torch.int32) >> _DROPPED_BITS
        counts = torch.bincount(keys, minlength=_BINS).cpu().numpy().astype(np.float64)
        (some,) = counts.nonzero()
        middles = ((some << _DROPPED_BITS) + (1 << (_DROPPED_BITS - 1))).astype(np.int32).view(np.float32)
        means = np.where(some == 0, 0.0, middles.astype(np.float64))
        return cls(counts[some], means)

    def at(self, step: float) -> tuple[float, float]:
        """Return the bytes of all symbols at a step and their table, and cos² of entries and symbols."""
        symbols = (self.means > 0) * 1.0 if step == SIGNS else np.rint(self.means / step).clip(max=MOST_MAGNITUDE)
        counts = np.bincount(symbols.astype(np.int64), self.counts)
        dot = (self.counts * self.means * symbols).sum()
        energy, norm = (self.counts * self.means**2).sum(), (self.counts * symbols**2).sum()
        return table_bytes(counts) if norm else 0.0, float(dot**2 / (energy * norm)) if norm else 0.0

    def best_step(self, room: float) -> tuple[float, float]:
        """Return the step that keeps most within some bytes, `SIGNS` among them, and cos²; 0 where none fits."""
        signs, kept = self.at(SIGNS)
        found = (SIGNS, kept if signs <= room else 0.0)
        coarse = 2 * float(self.means[-1])  # of which nothing is left
        fine = coarse * 2.0**-_OCTAVES
        for _ in range(_HALVINGS):
            step = math.sqrt(coarse * fine)
            size, kept = self.at(step)
            coarse, fine = (step, fine) if size <= room else (coarse, step)
            if size <= room and kept > found[1]:
                found = step, kept
        return found


def encode_entries(entries: torch.Tensor, budget: int, step: float, gain: float, name: str) -> Stored | None:
    """Return entries, (m, n), as symbols; only the largest where others do not fit; none where it does not.

    Args:
        entries: float32, on any device.
        budget: bytes.
        step: from `Magnitudes.best_step`.
        gain: see `EcsqOptions`.
        name: the tensor, for errors.
    """
    values, shape = entries.flatten(), (entries.shape[0], entries.shape[1])
    energy = (values.double() ** 2).sum()
    for symbols, power in _tries(values, step, gain):
        exact = symbols.double()
        dot, norm, whole = torch.stack([(values * exact).sum(), (exact * exact).sum(), energy]).tolist()
        if not norm:
            continue
        scale = np.array([dot / norm * (dot * (dot / norm) / whole) ** -power])
        stored = Stored.of(ENTRIES, shape, [symbols.cpu().numpy().astype(np.int32)], scale, name)
        if len(stored.packed()[PART]) <= budget:
            return stored
    return None


def _tries(values: torch.Tensor, step: float, gain: float) -> Iterator[tuple[torch.Tensor, float]]:
    """Yield symbols of entries, (N,), that take fewer and fewer bytes, and their gain; in the end of but one entry."""
    for widened in range(_TRIES):
        yield quantised(values, step * _WIDER**widened), gain
    largest = values.abs().argmax()
    one = torch.zeros(len(values), dtype=torch.int16, device=values.device)
    one[largest] = values[largest].sign().short()
    yield one, 0.0
