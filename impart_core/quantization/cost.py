"""What quantised factors take: every byte of them, or the count of the paper's code (Algorithm 3)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from impart_core.codec.bitpack import packed_bytes
from impart_core.quantization.grid import RowRange
from impart_core.quantization.groups import group_count
from impart_core.quantization.ladder import Ladder

FloatArray = npt.NDArray[np.float64]

SCALE_BYTES = 2  # float16
_DENSE_BITS = 16  # what a ratio counts against
_CHARGED = {3: 4}  # the reference's code counts the 3-bit group as 4 bits
_BISECTED_TO = 1e-4  # where the reference's search for α ends


@dataclass(frozen=True)
class StreamBytes:
    """Bytes of one quantised matrix, by part."""

    codes: int
    scales: int
    zeros: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.codes + self.scales + self.zeros


def stream_bytes(spans: Sequence[RowRange], kept: Sequence[int], size: int | None) -> StreamBytes:
    """Return the bytes of a matrix, each range of rows having a stream of its own of codes and of zero points.

    Args:
        spans: ranges of rows; see `Ladder.spans`.
        kept: how many entries each range keeps.
        size: kept entries that share a scale; None: all of a range.
    """
    groups = [group_count(count, span, size) for span, count in zip(spans, kept, strict=True)]
    return StreamBytes(
        codes=sum(packed_bytes(count, span.bits) for span, count in zip(spans, kept, strict=True)),
        scales=SCALE_BYTES * sum(groups),
        zeros=sum(packed_bytes(count, span.bits) for span, count in zip(spans, groups, strict=True)),
    )


def most_fitting(fits: Callable[[int], bool], least: int, most: int) -> int:
    """Return the greatest count from `least` to `most` that fits, as all below it do; `least` where none does."""
    low, high = least, most + 1  # the first too many
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


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
        drop_at: p_k of the vectors kept at an α that U and V each need (see `methods.impart.allocate`).
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
