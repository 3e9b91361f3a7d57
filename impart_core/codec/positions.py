"""Positions of kept entries, as Golomb-Rice coded gaps (docs/format.md).

The gap before each position, the entries skipped since the one before it, is split at bit b: its remainder takes b
bits, its quotient q is written in unary as q zeros and a one. Remainders and quotients are two streams, so that both
directions are whole-array operations. With b = 0 the quotient stream is the bitmap itself, cut after its last one: the
better of bitmap and coded gaps is a choice of b.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from impart_core.base.errors import CorruptArtifactError
from impart_core.codec.bitpack import UInt8Array, pack, packed_bytes, unpack

Int64Array = npt.NDArray[np.int64]

_WIDEST = 32
_WASTED_BITS = 14  # at most 7 in the last byte of either stream


@dataclass(frozen=True)
class PositionCodes:
    """Rising positions as stored: the remainders' width b, and both streams, least significant bit first.

    Attributes:
        width: b, 0 to 32.
        quotients: uint8, unary.
        remainders: uint8, packed; empty when b is 0.
    """

    width: int
    quotients: UInt8Array
    remainders: UInt8Array


def encode_positions(positions: Int64Array) -> PositionCodes:
    """Return the codes of rising positions, (k,), with the width that takes the fewest bytes."""
    gaps = _gaps(positions)
    width, _ = _best_width(gaps)
    ends = np.cumsum((gaps >> width) + 1) - 1
    bits = np.zeros(int(ends[-1]) + 1 if len(ends) else 0, dtype=np.uint8)
    bits[ends] = 1
    remainders = (gaps & ((1 << width) - 1)).astype(np.uint32)
    return PositionCodes(
        width=width,
        quotients=np.packbits(bits, bitorder="little"),
        remainders=pack(remainders, width) if width else np.empty(0, dtype=np.uint8),
    )


def position_bytes(positions: Int64Array) -> int:
    """Return the bytes of both streams of these rising positions."""
    return _best_width(_gaps(positions))[1]


def most_position_bytes(count: int, size: int) -> int:
    """Return the most bytes that both streams take for any `count` positions below `size`; exact for one position."""
    return min(_stream_bytes(((size - count) >> width) + count, count, width) for width in range(_WIDEST + 1))


def decode_positions(codes: PositionCodes, count: int, size: int, name: str) -> Int64Array:
    """Return the `count` rising positions below `size`, (count,).

    The streams may come from anywhere: nothing is allocated beyond a few times the tensor's own size.

    Raises:
        CorruptArtifactError: naming the tensor, when the streams hold anything else.
    """
    if codes.width > _WIDEST or count > size or len(codes.quotients) > packed_bytes(size, 1):
        raise _damaged(name, size, f"{count:,} of them, with remainders of {codes.width} bits, are not possible")
    if len(codes.remainders) != packed_bytes(count, codes.width):
        raise _damaged(name, size, f"{len(codes.remainders):,} bytes of remainders are not {count:,} positions")
    bits = np.unpackbits(codes.quotients, bitorder="little").view(np.bool_)  # whose ends are found in a third the time
    if (found := int(np.count_nonzero(bits))) != count:  # their ends would take eight bytes each
        raise _damaged(name, size, f"the quotients are those of {found:,} positions, not of {count:,}")
    ends = np.flatnonzero(bits)
    used = int(ends[-1]) + 1 if len(ends) else 0
    if len(codes.quotients) != packed_bytes(used, 1):
        raise _damaged(name, size, "the quotients go on after their last position")
    gaps = _gaps(ends)
    total = (int(gaps.sum()) << codes.width) + count
    if codes.width:
        remainders = unpack(codes.remainders, codes.width, count)
        total += int(remainders.sum(dtype=np.int64))
    if total > size:
        raise _damaged(name, size, "they lead beyond its end")
    return ends if codes.width == 0 else np.cumsum((gaps << codes.width) + remainders + 1) - 1


def _gaps(positions: Int64Array) -> Int64Array:
    return np.diff(positions, prepend=-1) - 1


def _stream_bytes(quotient_bits: int, count: int, width: int) -> int:
    return packed_bytes(quotient_bits, 1) + packed_bytes(count, width)


def _best_width(gaps: Int64Array) -> tuple[int, int]:
    """Return the width with the fewest bytes, the narrowest of those, and its bytes.

    The streams' bits are convex in the width: once they are well above the fewest, no wider one is better.
    """
    count, quotients = len(gaps), gaps.copy()
    best_width, best_bytes, fewest_bits = 0, _stream_bytes(int(gaps.sum()) + count, count, 0), int(gaps.sum()) + count
    for width in range(1, _WIDEST + 1):
        quotients >>= 1
        quotient_bits = int(quotients.sum()) + count
        bits = quotient_bits + width * count
        if bits > fewest_bits + _WASTED_BITS:
            break
        fewest_bits = min(fewest_bits, bits)
        if (size := _stream_bytes(quotient_bits, count, width)) < best_bytes:
            best_width, best_bytes = width, size
    return best_width, best_bytes


def _damaged(name: str, size: int, why: str) -> CorruptArtifactError:
    return CorruptArtifactError(
        f"The codes of {name!r} do not hold positions in a tensor of {size:,} entries: {why}. "
        "The artifact is damaged: compress it again."
    )
