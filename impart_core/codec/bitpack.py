"""Codes of 1 to 32 bits each, packed without a bit between them (docs/format.md).

Code i fills bits i·width to (i + 1)·width − 1 of one stream, least significant bit first in codes and in bytes; the
last byte is filled up with zeros. n codes take exactly ⌈n·width/8⌉ bytes.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]
UIntArray = npt.NDArray[np.uint8] | npt.NDArray[np.uint16] | npt.NDArray[np.uint32]

_CHUNK = 1 << 16  # codes worked on at once, as one byte a bit: 2 MiB at most; a multiple of 8, to end on a byte
_CODES = 8  # of at most 8 bits: that many fill whole bytes, and fit one integer of 64 bits


def packed_bytes(count: int, width: int) -> int:
    """Return the bytes that `count` codes of `width` bits take."""
    return -(-count * width // 8)


def pack(codes: UIntArray, width: int) -> UInt8Array:
    """Return codes, (n,), as a stream, uint8, (⌈n·width/8⌉,).

    Raises:
        ValueError: a code does not fit the width, or the width is not 1 to 32.
    """
    container = _container(width)
    if len(codes) and int(codes.max()) >> width:
        raise ValueError(f"code {int(codes.max())} does not fit {width} bits")
    packed = np.empty(packed_bytes(len(codes), width), dtype=np.uint8)
    for part, stream in _chunks(len(codes), width):
        if width <= _CODES:
            packed[stream] = _pack_narrow(codes[part], width)[: len(packed) - stream.start]
            continue
        octets = codes[part].astype(container).view(np.uint8).reshape(-1, container.itemsize)
        bits = np.unpackbits(octets, axis=1, count=width, bitorder="little")
        packed[stream] = np.packbits(bits.ravel(), bitorder="little")
    return packed


def unpack(packed: UInt8Array, width: int, count: int) -> UIntArray:
    """Return `count` codes of a stream, (count,), in the smallest of uint8, uint16 and uint32 that holds them.

    Raises:
        ValueError: the stream does not have the length that so many codes take, or the width is not 1 to 32.
    """
    container = _container(width)
    if len(packed) != packed_bytes(count, width):
        raise ValueError(f"{count} codes of {width} bits take {packed_bytes(count, width)} bytes, not {len(packed)}")
    codes = np.empty(count, dtype=container)
    for part, stream in _chunks(count, width):
        length = min(part.stop, count) - part.start
        if width <= _CODES:
            codes[part] = _unpack_narrow(packed[stream], width)[:length]
            continue
        bits = np.zeros((length, 8 * container.itemsize), dtype=np.uint8)
        bits[:, :width] = np.unpackbits(packed[stream], count=length * width, bitorder="little").reshape(-1, width)
        codes[part] = np.packbits(bits, axis=1, bitorder="little").view(container)[:, 0]
    return codes


def _pack_narrow(codes: UIntArray, width: int) -> UInt8Array:
    """Return codes of at most 8 bits as a stream, filled up to a multiple of 8 codes; see `_unpack_narrow`."""
    whole = np.zeros((-(-len(codes) // _CODES), _CODES), dtype=np.uint8)
    whole.reshape(-1)[: len(codes)] = codes
    integers = np.zeros(len(whole), dtype="<u8")
    for place in range(_CODES):
        integers |= whole[:, place].astype("<u8") << np.uint64(place * width)
    return integers.view(np.uint8).reshape(-1, _CODES)[:, :width].reshape(-1)


def _unpack_narrow(packed: UInt8Array, width: int) -> UInt8Array:
    """Return codes of at most 8 bits: 8 of them are as many bytes as they have bits, and one integer of 64."""
    groups = -(-len(packed) // width)
    octets = np.zeros(groups * width, dtype=np.uint8)
    octets[: len(packed)] = packed
    words = np.zeros((groups, _CODES), dtype=np.uint8)
    words[:, :width] = octets.reshape(groups, width)
    integers = words.view("<u8")[:, 0]
    codes = np.empty((groups, _CODES), dtype=np.uint8)
    for place in range(_CODES):
        codes[:, place] = (integers >> np.uint64(place * width)) & np.uint64((1 << width) - 1)
    return codes.reshape(-1)


def _container(width: int) -> np.dtype[np.uint8] | np.dtype[np.uint16] | np.dtype[np.uint32]:
    if not 1 <= width <= 32:
        raise ValueError(f"codes have 1 to 32 bits, not {width}")
    return np.dtype("u1" if width <= 8 else "<u2" if width <= 16 else "<u4")


def _chunks(count: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Yield which codes, and which bytes of the stream, make up each chunk."""
    for start in range(0, count, _CHUNK):
        stop = start + _CHUNK
        yield slice(start, stop), slice(start * width // 8, stop * width // 8)
