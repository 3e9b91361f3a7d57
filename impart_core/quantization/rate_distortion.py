"""Uniform scalar quantisation for an entropy coder, and how bytes are shared out by rate and distortion.

A vector of unit variance is divided by a step and rounded to the nearest integer; the wider the step, the fewer bits
its symbols take, below one where most are zero. With a wide step half of it is the dead zone: on Gaussian entries no
other thresholds keep more at the same entropy, and reconstruction at the integers themselves keeps as much as at
centroids, but for a factor that the scale takes over (Sullivan 1996).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from impart_core.codec.tables import MOST_MAGNITUDE, FloatArray, Int32Array, Int64Array, table_bytes

Float32Array = npt.NDArray[np.float32]

# Steps that are none: every entry is its sign, which takes one bit whatever the entries; or only the largest is.
SIGNS, LARGEST = math.inf, 0.0
_ROUNDING = 1e-6  # of a row's largest entry: what is below is taken for zero
DROPPED = -1
_ROUNDS = 3  # of tables from choices, and choices from tables
_HALVINGS = 20  # of the price of a bit
_PRICES = 2.0**-60, 1.0  # in worth: that of all is at most 1 each, and each takes a bit or more
_MOST_CHANGES = 48  # tried with the bytes that are left over
_UNSEEN = 0.05  # of a symbol, as counted in a table that has none of its magnitude


def quantised(entries: Float32Array, step: float) -> Int32Array:
    """Return the symbols of entries, rows of any number.

    Args:
        entries: of about unit variance.
        step: more than 0, or `SIGNS` or `LARGEST`.
    """
    if step in (SIGNS, LARGEST):
        share = _ROUNDING if step == SIGNS else 1 - _ROUNDING
        magnitudes = np.abs(entries)
        counts = magnitudes > np.float32(share) * magnitudes.max(axis=-1, keepdims=True)
        signs: Int32Array = np.where(counts, np.sign(entries), 0.0).astype(np.int32)
        return signs
    rounded = np.rint(entries / np.float32(step)).clip(-MOST_MAGNITUDE, MOST_MAGNITUDE)
    found: Int32Array = rounded.astype(np.int32)
    return found


def cosine_squared(entries: Float32Array, symbols: Int32Array) -> FloatArray:
    """Return the squared cosine of each row and its symbols, (rows,); 0 where all symbols are."""
    exact = entries.astype(np.float64)
    dot, energy = (exact * symbols).sum(axis=-1), (exact * exact).sum(axis=-1)
    norm = (symbols.astype(np.int64) ** 2).sum(axis=-1)
    found: FloatArray = np.divide(dot**2, energy * norm, out=np.zeros(entries.shape[:-1]), where=(energy * norm) > 0)
    return found


@dataclass(frozen=True)
class Trials:
    """What directions take and keep at each of some steps.

    Attributes:
        histograms: for each step how many symbols of each direction have each magnitude, int64, (K, S + 1).
        kept: cos² of the direction and its code, (K, steps): that of u times that of v.
        extra: bytes that each kept direction takes besides its symbols.
    """

    histograms: tuple[Int64Array, ...]
    kept: FloatArray
    extra: int

    @classmethod
    def of(cls, u: Float32Array, v: Float32Array, steps: Sequence[float], extra: int) -> "Trials":
        """Try each step on directions of unit variance, (K, m) and (K, n)."""
        histograms, kept = [], []
        for step in steps:
            sides = [(side, quantised(side, step)) for side in (u, v)]
            histograms.append(_histograms(np.concatenate([symbols for _, symbols in sides], axis=1)))
            kept.append(math.prod(cosine_squared(*side) for side in sides))
        return cls(tuple(histograms), np.stack(kept, axis=1), extra)

    def only(self, steps: Sequence[int]) -> "Trials":
        """Return the trials of some of the steps, by number."""
        return Trials(tuple(self.histograms[step] for step in steps), self.kept[:, steps], self.extra)

    def counts(self, chosen: Int64Array) -> dict[int, Int64Array]:
        """Return the histogram of the directions that chose a step, by its number."""
        used = np.unique(chosen[chosen != DROPPED]).tolist()
        return {step: self.histograms[step][chosen == step].sum(axis=0) for step in used}

    def nbytes(self, chosen: Int64Array) -> float:
        """Return the bytes of tables, symbols and what each kept direction takes besides, but for a rounding."""
        return sum(map(table_bytes, self.counts(chosen).values())) + self.extra * int((chosen != DROPPED).sum())

    def bits(self, chosen: Int64Array) -> FloatArray:
        """Return the bits of each direction at each step, (K, steps), by tables of those that chose it."""
        found, counts = np.empty(self.kept.shape), self.counts(chosen)
        for step, own in enumerate(self.histograms):
            found[:, step] = own @ _lengths(counts.get(step, own.sum(axis=0)))
        return found + 8 * self.extra


def allocate(trials: Trials, worth: FloatArray, room: float) -> Int64Array:
    """Return the step of each direction, (K,), or `DROPPED`, for the most worth within some bytes.

    Each direction takes the step with the most worth − λ·bits, or none where all are below zero, with the λ at which
    the bytes fit; what is left over then goes to the changes that add the most worth a bit.

    Args:
        trials: what directions take and keep.
        worth: of each direction at each step, (K, steps).
        room: bytes.
    """
    chosen = best = np.full(len(worth), DROPPED, dtype=np.int64)
    for _ in range(_ROUNDS):
        bits = trials.bits(chosen)
        chosen = _at_price(trials, worth, bits, room)
        if total_worth(worth, chosen) >= total_worth(worth, best):
            best = chosen
        if (chosen == DROPPED).all():
            break
    return _filled(trials, worth, best, room)


def total_worth(worth: FloatArray, chosen: Int64Array) -> float:
    """Return what a choice of steps is worth."""
    kept = (chosen != DROPPED).nonzero()[0]
    return float(worth[kept, chosen[kept]].sum())


def _at_price(trials: Trials, worth: FloatArray, bits: FloatArray, room: float) -> Int64Array:
    """Return the choice at the lowest price of a bit at which the bytes fit."""
    best = np.full(len(worth), DROPPED, dtype=np.int64)
    low, high = _PRICES
    for _ in range(_HALVINGS):
        price = math.sqrt(low * high)
        gained = worth - price * bits
        chosen = np.where(gained.max(axis=1) > 0, gained.argmax(axis=1), DROPPED)
        if trials.nbytes(chosen) > room:
            low = price
        else:
            high, best = price, chosen
    return best


def _filled(trials: Trials, worth: FloatArray, chosen: Int64Array, room: float) -> Int64Array:
    """Return a choice with what fits in the bytes that it leaves."""
    bits, chosen = trials.bits(chosen), chosen.copy()
    rows, tried = np.arange(len(worth)), np.zeros(worth.shape, dtype=bool)
    left = 8 * (room - trials.nbytes(chosen))
    for _ in range(_MOST_CHANGES):
        kept = chosen != DROPPED
        now = np.where(kept, chosen, 0)
        more_worth = worth - np.where(kept, worth[rows, now], 0.0)[:, None]
        more_bits = bits - np.where(kept, bits[rows, now], 0.0)[:, None]
        possible = (more_worth > 0) & (more_bits <= left) & ~tried
        if not possible.any():
            break
        rate = np.where(possible, more_worth / np.maximum(more_bits, 1.0), -1.0)
        row, step = np.unravel_index(rate.argmax(), rate.shape)
        tried[row, step] = True
        other = chosen.copy()
        other[row] = step
        size = trials.nbytes(other)
        if size <= room:
            chosen, left = other, 8 * (room - size)
    return chosen


def _histograms(symbols: Int32Array) -> Int64Array:
    magnitudes = np.abs(symbols).astype(np.int64)
    rows, width = len(symbols), int(magnitudes.max(initial=1)) + 1
    flat = (magnitudes + width * np.arange(rows)[:, None]).ravel()
    return np.bincount(flat, minlength=rows * width).reshape(rows, width)


def _lengths(counts: Int64Array) -> FloatArray:
    """Return the bits of a symbol of each magnitude, its sign included."""
    smoothed = counts + _UNSEEN
    found: FloatArray = np.log2(smoothed.sum()) - np.log2(smoothed)
    found[1:] += 1
    return found
