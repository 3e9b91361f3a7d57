"""Positions of kept entries, as Golomb-Rice coded gaps (docs/format.md).

The gap before each position, the entries skipped since the one before it, is split at bit b: its remainder takes b
bits, its quotient q is written in unary as q zeros and a one. Remainders and quotients are two streams, so that both
directions are whole-array operations. With b = 0 the quotient stream is the bitmap itself, cut after its last one: the
better of bitmap and coded gaps is a choice of b.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from impart_core.base.errors import CorruptArtifactError
from impart_core.codec.bitpack import UInt8Array, UIntArray, pack, packed_bytes, unpack

Int64Array = npt.NDArray[np.int64]

_WIDEST = 32
_HIDDEN_BITS = 16  # more than the last bytes of both streams have, by which bits and bytes may differ
_BLOCK = 1 << 15  # positions worked on at once, which fit the processor's cache


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
    width, quotient_bits = _best_width(positions)
    bits = np.zeros(quotient_bits, dtype=np.uint8)
    if width == 0:
        bits[positions] = 1
        return PositionCodes(width, np.packbits(bits, bitorder="little"), np.empty(0, dtype=np.uint8))
    remainders = np.empty(len(positions), dtype=np.uint32)
    last = -1
    for block, gaps in _blocks(positions):
        np.bitwise_and(gaps, (1 << width) - 1, out=remainders[block], casting="unsafe")
        gaps >>= width
        gaps += 1
        gaps[0] += last
        ends = np.cumsum(gaps, out=gaps)
        bits[ends] = 1
        last = int(ends[-1])
    return PositionCodes(
        width=width,
        quotients=np.packbits(bits, bitorder="little"),
        remainders=pack(remainders, width),
    )


def position_bytes(positions: Int64Array) -> int:
    """Return the bytes of both streams of these rising positions."""
    width, quotient_bits = _best_width(positions)
    return _stream_bytes(quotient_bits, len(positions), width)


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
    remainders = unpack(codes.remainders, codes.width, count) if codes.width else np.zeros(0, dtype=np.uint8)
    if ((used - count) << codes.width) + int(remainders.sum(dtype=np.int64)) + count > size:
        raise _damaged(name, size, "they lead beyond its end")
    return _widened(ends, codes.width, remainders) if codes.width else ends


def _widened(ends: Int64Array, width: int, remainders: UIntArray) -> Int64Array:
    """Return the positions whose quotients end at these bits; in place."""
    last = -1
    for block, gaps in _blocks(ends):
        gaps <<= width
        gaps += remainders[block]
        gaps += 1
        gaps[0] += last
        np.cumsum(gaps, out=ends[block])
        last = int(ends[block][-1])
    return ends


def _blocks(positions: Int64Array) -> Iterator[tuple[slice, Int64Array]]:
    """Yield the gaps of some positions at a time, which may be changed, and which these are."""
    before = -1
    for start in range(0, len(positions), _BLOCK):
        block = slice(start, start + _BLOCK)
        gaps = positions[block] - 1
        gaps[1:] -= positions[block][:-1]
        gaps[0] -= before
        before = int(positions[block][-1])
        yield block, gaps


def _stream_bytes(quotient_bits: int, count: int, width: int) -> int:
    return packed_bytes(quotient_bits, 1) + packed_bytes(count, width)


def _best_width(positions: Int64Array) -> tuple[int, int]:
    """Return the width with the fewest bytes, the narrowest of those, and the bits of its quotients."""
    count = len(positions)
    skipped = int(positions[-1]) + 1 - count if count else 0
    widths = _likely_widths(skipped, count)
    if widths[-1] == 0:
        return 0, skipped + count
    quotients = dict.fromkeys(widths, 0)
    for _, gaps in _blocks(positions):
        gaps >>= widths[0]
        for width in widths:
            quotients[width] += int(gaps.sum())
            gaps >>= 1
    best = min(widths, key=lambda width: _stream_bytes(quotients[width] + count, count, width))
    return best, quotients[best] + count


def _likely_widths(skipped: int, count: int) -> range:
    """Return widths among which that with the fewest bytes is, for `count` gaps whose sum is given.

    From w to w + 1 the remainders of k gaps take k bits more, and their quotients Σ⌈⌊gap/2^w⌋/2⌉ fewer. That is less
    than (Σgap/2^w + k)/2 and more than (Σgap/2^w − k)/2: so no width is the best as long as Σgap/2^w exceeds 3k by
    twice the bits that full bytes may hide, nor one after k exceeds it by as much.
    """
    hidden = 2 * _HIDDEN_BITS
    narrowest = (skipped // (3 * count + hidden)).bit_length()
    widest = (skipped // (count - hidden)).bit_length() if count > hidden else _WIDEST
    return range(min(narrowest, _WIDEST), min(widest, _WIDEST) + 1)


def _damaged(name: str, size: int, why: str) -> CorruptArtifactError:
    return CorruptArtifactError(
        f"The codes of {name!r} do not hold positions in a tensor of {size:,} entries: {why}. "
        "The artifact is damaged: compress it again."
    )
