"""What each vector pair keeps: by the paper (Algorithm 1), within exact bytes, or in proportion to σ_k."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from impart_core.codec.mask import UInt16Array, keep_codes, mask_from_levels
from impart_core.delta.budget import BYTES_PER_VALUE, BYTES_PER_VECTOR_PAIR, candidate_pairs, pair_bytes

FloatArray = npt.NDArray[np.float64]
Sizes = Callable[[UInt16Array], FloatArray | npt.NDArray[np.int64]]
ROUNDING = 1e-12  # relative; a pair that fills the room exactly is kept
_BISECTIONS = 24  # finer than the 1/65536 steps in which keep probabilities are stored


def allocate(importance: FloatArray, rank: int, alpha: float, beta: float) -> FloatArray:
    """Return the drop probabilities of the vector pairs that survive (Algorithm 1); all others are dropped.

    p_k = (1 − s_k)·γ for k ≤ ⌊r(1−β)⌋ with γ = (α−β)/(1−β); then pairs are dropped from
    the tail until the mean of p over those ⌊r(1−β)⌋ reaches γ.

    Args:
        importance: s_k of the leading pairs, never rising; of those left out, none is kept.
        rank: r = min(m, n).
        alpha: sparsity that U and V each need, β ≤ α ≤ 1.
        beta: pre-prune ratio of this layer.

    Returns:
        float64 array, (K,), K ≤ ⌊r(1−β)⌋, possibly empty.
    """
    candidates = candidate_pairs(rank, beta)
    gamma = (alpha - beta) / (1.0 - beta)
    drop: FloatArray = (1.0 - importance[:candidates]) * gamma
    kept = np.cumsum(1.0 - drop)
    return drop[: int(np.searchsorted(kept, candidates * (1.0 - gamma) * (1.0 + ROUNDING), side="right"))]


@dataclass(frozen=True)
class MaskLevels:
    """Upper halves of both masks' words, from which stored bytes are counted exactly for any thresholds."""

    u: UInt16Array
    v: UInt16Array

    def pair_bytes(self, codes: UInt16Array) -> npt.NDArray[np.int64]:
        """Bytes that each vector pair takes at these keep codes, (K,)."""
        kept = [mask_from_levels(levels[: len(codes)], codes).sum(axis=1) for levels in (self.u, self.v)]
        return np.asarray(BYTES_PER_VALUE * (kept[0] + kept[1]) + BYTES_PER_VECTOR_PAIR, dtype=np.int64)


def fit_bytes(importance: FloatArray, words: MaskLevels, budget: int) -> UInt16Array:
    """Return the keep codes of eq. 7 with the smallest γ whose stored bytes fit the budget.

    Of the given pairs, those that even γ = 1 cannot fit are dropped; γ then uses the budget up, where the paper's
    boundary shift leaves up to one pair of it unused.

    Args:
        importance: s_k of the pairs to keep if they fit, (K,); see `pairs_to_fit`.
        words: the words of both masks.
        budget: bytes for this projection's codes.
    """
    smallest = np.cumsum(words.pair_bytes(keep_codes(importance)))
    importance = importance[: max(1, int(np.searchsorted(smallest, budget, side="right")))]

    def codes_at(gamma: float) -> UInt16Array:
        return keep_codes(1.0 - (1.0 - importance) * gamma)

    return codes_at(least_fitting(lambda gamma: int(words.pair_bytes(codes_at(gamma)).sum()) <= budget, 0.0))


def fit_proportional(importance: FloatArray, sizes: Sizes, room: float, floor: float) -> UInt16Array:
    """Return the keep codes of q_k = min(1, s_k/x) with the smallest x at which they fit.

    Pairs with q_k below the floor are dropped: what they would add is mostly the noise of thinning, which is the same
    for all thinned pairs, σ_k²/q_k².

    Args:
        importance: s_k of the leading pairs, never rising, the first 1, (K,).
        sizes: gives the size of each pair at keep codes, (K,).
        room: the most that all of them may have.
        floor: the least q_k of a pair that is kept.
    """
    smallest = np.cumsum(sizes(keep_codes(np.full(len(importance), floor))))
    importance = importance[: max(1, int(np.searchsorted(smallest, room, side="right")))]

    def codes_at(x: float) -> UInt16Array:
        share = np.minimum(1.0, importance / x)
        return keep_codes(share[: max(1, int((share >= floor * (1 - ROUNDING)).sum()))])

    low = floor * float(importance[-1])  # where all are whole
    return codes_at(least_fitting(lambda y: float(sizes(codes_at(y / floor)).sum()) <= room, low) / floor)


def least_fitting(fits: Callable[[float], bool], low: float) -> float:
    """Return the least number from `low` to 1 that fits, 1 being known to; bisection to 2⁻²⁴ of the interval."""
    if fits(low):
        return low
    high = 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def pairs_to_fit(kept: int, m: int, n: int, budget: int) -> int:
    """Return how many pairs `fit_bytes` is given: as many as Algorithm 1 keeps, or more where these leave room.

    Pairs that all fit whole leave the rest of the budget unused, whatever γ is; with one more than fit whole, γ
    uses it up. Algorithm 1 keeps no more than fit whole where these are few, or nearly equal in importance.

    Args:
        kept: Algorithm 1's number.
        m: rows.
        n: columns.
        budget: bytes for this projection's codes.
    """
    return max(kept, budget // pair_bytes(m, n) + 1)
