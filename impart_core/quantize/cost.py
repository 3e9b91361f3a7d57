"""What quantised factors take: every byte of them, or the count of the paper's code (Algorithm 3)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from impart_core.codec.bitpack import packed_bytes
from impart_core.quantize.grid import RowRange
from impart_core.quantize.ladder import Ladder

FloatArray = npt.NDArray[np.float64]

SCALE_BYTES = 2  # float16
KEEP_BYTES = 2  # a keep-probability code of 16 bits
_DENSE_BITS = 16  # what a ratio counts against
_CHARGED = {3: 4}  # the reference's code counts the 3-bit group as 4 bits
_BISECTED_TO = 1e-4  # where the reference's search for α ends


@dataclass(frozen=True)
class FactorBytes:
    """Bytes of one quantised factor, by part."""

    codes: int
    scales: int
    zeros: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.codes + self.scales + self.zeros


def factor_bytes(spans: Sequence[RowRange], kept: npt.NDArray[np.int64], columns: int) -> FactorBytes:
    """Return the bytes of a factor of K vectors, each range of rows having a stream of its own of codes and of zeros.

    Args:
        spans: ranges of rows, 0 to K; see `Ladder.spans`.
        kept: kept entries of each vector, (K,).
        columns: entries of a whole vector: m of U, n of V.
    """
    grids = [(span, (span.stop - span.start) * span.groups(columns)) for span in spans]
    return FactorBytes(
        codes=sum(packed_bytes(int(kept[span.rows].sum()), span.bits) for span in spans),
        scales=sum(SCALE_BYTES * count for _, count in grids),
        zeros=sum(packed_bytes(count, span.bits) for span, count in grids),
    )


def pair_parts_bytes(pairs: int, sigma_bytes: int = 4, masked: bool = True) -> int:
    """Return the bytes of K singular values, and of their keep codes where factors are masked.

    Args:
        pairs: K.
        sigma_bytes: 4 for float32, 2 for float16.
        masked: whether vectors have keep probabilities.
    """
    return pairs * (sigma_bytes + KEEP_BYTES * masked)


def paper_sparsity(drop: FloatArray, rank: int, ladder: Ladder) -> float:
    """Return the sparsity α_qt that U and V reach by dropping and quantising, as the paper's code counts it.

    1 − Σ_k (1 − p_k)·b_k/16 / r: expected entries at their bits, 3 counted as 4; no scales, zero points or
    singular values.

    Args:
        drop: p_k of the vectors that are kept, (K,).
        rank: r.
        ladder: the bits of each.
    """
    bits = np.zeros(len(drop))
    for span in ladder.spans(len(drop)):
        bits[span.rows] = _CHARGED.get(span.bits, span.bits)
    return float(1.0 - ((1.0 - drop) * bits / _DENSE_BITS).sum() / rank)


def paper_alpha(drop_at: Callable[[float], FloatArray], rank: int, target: float, beta: float, ladder: Ladder) -> float:
    """Return the sparsity α before quantisation with which a target after it is met (Algorithm 3).

    Bisection between β and 1 until the interval is 1e-4 wide; the result is its middle, so that the target is
    met about, not at least. A target that even β exceeds gives about β.

    Args:
        drop_at: p_k of the vectors kept at an α that U and V each need (see `sparsify.impart.allocate`).
        rank: r.
        target: α_qt of U and V, 1 − `delta.budget.kept_fraction`.
        beta: pre-prune ratio of this layer.
        ladder: the bits of each vector.
    """
    low, high = beta, 1.0
    while high - low > _BISECTED_TO:
        middle = (low + high) / 2
        if paper_sparsity(drop_at(middle), rank, ladder) < target:
            low = middle
        else:
            high = middle
    return (low + high) / 2
