"""How bytes are shared out among directions by rate and distortion: by a Lagrangian, or by one step for all.

The Lagrangian takes for each direction the step with the most worth less a price of its bits (Shoham and Gersho 1988).
One step for all is reverse water-filling (Cover and Thomas, §10.3.3): every kept direction has the same distortion, and
one whose share is below it is dropped.
"""

import math
from collections.abc import Sequence

import numpy as np

from impart_core.codec.tables import FloatArray, Int64Array
from impart_core.quantization.trials import DROPPED, Trials

_ROUNDS = 3  # of tables from choices, and choices from tables
_HALVINGS = 20  # of the price of a bit, or of the step
_PRICES = 2.0**-60, 1.0  # in worth: that of all is at most 1 each, and each takes a bit or more
_MOST_CHANGES = 48  # tried with the bytes that are left over


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
    best = _filled(trials, worth, best, room)
    if (best != DROPPED).sum() <= 1:
        alone = _alone(trials, worth, room)
        best = alone if total_worth(worth, alone) > total_worth(worth, best) else best
    return best


def _alone(trials: Trials, worth: FloatArray, room: float) -> Int64Array:
    """Return the choice of the one direction and step with the most worth that fits; of none where none does."""
    chosen = np.full(len(worth), DROPPED, dtype=np.int64)
    for flat in np.argsort(-worth, axis=None, kind="stable").tolist():
        row, step = divmod(flat, worth.shape[1])
        chosen[row] = step
        if worth[row, step] > 0 and trials.nbytes(chosen) <= room:
            return chosen
        chosen[row] = DROPPED
    return chosen


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


def one_step(trials: Trials, steps: Sequence[float], wider: FloatArray, room: float) -> Int64Array:
    """Return the step of each direction, (K,), or `DROPPED`, by one step for all that fits some bytes.

    A direction takes the nearest of the steps that were tried to the common one times its own factor, or the next finer
    one at which anything of it is kept. Beyond the widest it is dropped.

    Args:
        trials: what directions take and keep.
        steps: those that were tried, falling.
        wider: by how much the step of each direction of unit variance is wider than the first's, (K,).
        room: bytes.
    """
    nothing = len(steps)
    keeps = np.where(trials.kept > 0, np.arange(nothing), nothing)
    finer = np.minimum.accumulate(keeps[:, ::-1], axis=1)[:, ::-1]  # the next step that keeps something
    rows = np.arange(len(wider))
    edges = np.sqrt(np.array(steps[:-1]) * np.array(steps[1:]))  # halfway, in logarithms
    best = np.full(len(wider), DROPPED, dtype=np.int64)
    low, high = steps[-1] / float(wider.max()), 2 * steps[0]  # all at the finest; none
    for _ in range(_HALVINGS):
        common = math.sqrt(low * high)
        chosen = finer[rows, np.searchsorted(-edges, -common * wider)]
        chosen[(chosen == nothing) | (common * wider > steps[0])] = DROPPED
        if trials.nbytes(chosen) > room:
            low = common
        else:
            high, best = common, chosen
    return best
