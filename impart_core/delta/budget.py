"""From a compression ratio to what may be kept, for any m×n (paper §3, PAPER.md §1).

CR counts against the 16-bit size of the dense projection, 2·m·n bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

BYTES_PER_VALUE = 2  # kept entries of U and V: float16
BYTES_PER_VECTOR_PAIR = 4 + 2  # a singular value in float32 and a keep-probability code of 16 bits

MOST_SHARE = 2  # of what a matrix would have by itself, where several share theirs
_HALVINGS = 64
_ROUNDING = 1e-9  # far above the rounding of the fractions here, far below one vector pair


def kept_fraction(m: int, n: int, cr: float) -> float:
    """Return d = 1 − α_uv, the fraction of U and V that may be kept: (1/CR)·mn / (r(m+n)), at most 1."""
    return min(1.0, m * n / (cr * min(m, n) * (m + n)))


def vector_fraction(m: int, n: int, beta: float) -> float:
    """Return 1 − β_layer, the fraction of vector pairs left by pre-pruning: (1−β)·2mn / (r(m+n)), at most 1.

    Square projections have 1 − β_layer = 1 − β. Oblong ones keep more pairs at equal β, as their factors
    are larger against the dense matrix.
    """
    return min(1.0, (1.0 - beta) * 2 * m * n / (min(m, n) * (m + n)))


def candidate_pairs(rank: int, beta: float) -> int:
    """Return ⌊r(1−β)⌋, the vector pairs left by pre-pruning; float rounding costs none (10·(1−0.8) is 2)."""
    return int(rank * (1.0 - beta) + _ROUNDING)


def budget_bytes(m: int, n: int, cr: float) -> int:
    """Return the largest whole number of bytes whose ratio to the dense 16-bit size is at least CR."""
    dense = 2 * m * n
    budget = int(dense / cr) + 1  # the division's rounding may be off by one; the ratio itself decides
    while budget and dense / budget < cr:
        budget -= 1
    return budget


def pair_bytes(m: int, n: int) -> int:
    """Return the bytes of one whole vector pair, nothing dropped; the first pair is always kept whole."""
    return BYTES_PER_VALUE * (m + n) + BYTES_PER_VECTOR_PAIR


@dataclass(frozen=True)
class Claim:
    """What a matrix claims of bytes that several share.

    Attributes:
        weight: in proportion to which bytes are shared out, more than 0.
        least: the fewest bytes that it takes.
        own: what it would have by itself, at least `least`.
        most: the most bytes that it is given, at least `own`.
        count: how many matrices there are of this kind.
    """

    weight: float
    least: int
    own: int
    most: int
    count: int = 1


def share_out(claims: Sequence[Claim]) -> list[int]:
    """Return the bytes of each matrix where those of all are shared out by weight, within bounds; at most as many."""
    room = sum(claim.count * claim.own for claim in claims)
    low, high = 0.0, max((claim.most / claim.weight for claim in claims), default=0.0)

    def given(unit: float) -> list[int]:
        return [min(claim.most, max(claim.least, int(unit * claim.weight))) for claim in claims]

    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        fits = sum(claim.count * size for claim, size in zip(claims, given(middle), strict=True)) <= room
        low, high = (middle, high) if fits else (low, middle)
    return given(low)
