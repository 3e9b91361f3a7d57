"""Unsigned integers in byte planes, each compressed (docs/format.md).

Every integer is rotated right by a few bits, and its bytes go to one plane each. Integers of a trained model's
differences have their information in some bits in the middle: a rotation puts a byte's border where a Huffman code
loses least, which has no codes below one bit, and where two bytes tell least of each other. For raw bfloat16 the
rotation by 7 makes the exponent a plane of its own.

Planes are cut into chunks, which fit the processor's cache and are one block of zstd's, with one Huffman table.
"""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
import zstandard

from impart_core.base.errors import CorruptArtifactError
from impart_core.codec.bitpack import UInt8Array
from impart_core.codec.parts import Codes, read_part

Integers = npt.NDArray[np.unsignedinteger]
Given = Callable[[int, int], Integers]  # those from one number to another

PLANES_PARTS = ("lengths", "planes", "rotation")
_CHUNK = 1 << 17  # integers whose planes are compressed at once
_SAMPLE = 1 << 14  # integers on which rotations are tried
_PIECES = 16  # that these are taken in, spread over all of them
# Next to no matches are looked for: integers hardly repeat, and what is saved is saved by the Huffman code.
_SETTING = zstandard.ZstdCompressionParameters(
    hash_log=6,
    chain_log=6,
    window_log=17,
    search_log=1,
    min_match=7,
    target_length=0,
    strategy=zstandard.STRATEGY_FAST,
    write_content_size=True,
    write_checksum=False,
)
_BITS = 8


def encode_planes(integers: Given, count: int, rotation: int | None = None) -> Codes:
    """Return integers of 1, 2, 4 or 8 bytes as parts.

    Args:
        integers: gives those from one number to another, which may be changed.
        count: how many there are.
        rotation: by how many bits each is rotated; None: by as many as are best on a sample.

    Returns:
        `planes` uint8, every plane of the first chunk, then of the next …; `lengths` uint32, the bytes of each, 0: it
        is all zeros, as many as it has integers: it is as it is; `rotation` uint8 (1,), bits.
    """
    compressor = _compressor()
    if rotation is None:
        rotation, _ = best_rotation(sample_of(integers, count))
    pieces = [
        piece
        for start in range(0, count, _CHUNK)
        for piece in _squeezed(integers(start, min(start + _CHUNK, count)), rotation, compressor)
    ]
    planes = np.frombuffer(bytearray().join(pieces), dtype=np.uint8)
    return {
        "planes": torch.from_numpy(planes),
        "lengths": torch.tensor([len(piece) for piece in pieces], dtype=torch.uint32),
        "rotation": torch.tensor([rotation], dtype=torch.uint8),
    }


def sample_of(integers: Given, count: int) -> Integers:
    """Return some of the integers, all of them where they are few; arguments as for `encode_planes`."""
    if count <= _SAMPLE:
        return integers(0, count)
    size = _SAMPLE // _PIECES
    starts = np.linspace(0, count - size, _PIECES).astype(np.int64)
    return np.concatenate([integers(start, start + size) for start in starts.tolist()])


def best_rotation(sample: Integers) -> tuple[int, int]:
    """Return the rotation at which a sample's planes take the fewest bytes, the least of several, and these bytes.

    Integers of one byte, and zeros, are not rotated.
    """
    compressor = _compressor()
    rotations = range(_BITS if sample.itemsize > 1 and sample.any() else 1)
    sizes = [sum(map(len, _squeezed(sample.copy(), rotation, compressor))) for rotation in rotations]
    return sizes.index(min(sizes)), min(sizes)


def decode_planes(codes: Codes, name: str, count: int, width: int) -> Iterator[Integers]:
    """Return the integers of each chunk in turn, in memory that the next one takes again.

    That there are as many parts and bytes as such integers have is checked at once, before the first is asked for.

    Args:
        codes: the parts.
        name: the tensor, for errors.
        count: how many integers.
        width: the bytes of each.

    Raises:
        CorruptArtifactError: they are not as many integers of this width.
    """
    return _chunks(*_read(codes, name, count, width), name, count, width)


def _chunks(
    planes: UInt8Array, places: list[tuple[int, int]], rotation: int, name: str, count: int, width: int
) -> Iterator[Integers]:
    chunk = np.empty(min(count, _CHUNK), dtype=f"<u{width}")
    for start in range(0, count, _CHUNK):
        part = chunk[: min(_CHUNK, count - start)]
        octets = part.view(np.uint8).reshape(-1, width)
        for plane in range(width):
            first, last = places[start // _CHUNK * width + plane]
            octets[:, plane] = _expanded(planes[first:last], len(part), name)
        yield _rotated(part, -rotation)


def check_planes(codes: Codes, name: str, count: int, width: int) -> None:
    """Check that integers decode; arguments and errors as for `decode_planes`."""
    for _ in decode_planes(codes, name, count, width):
        pass


def _read(codes: Codes, name: str, count: int, width: int) -> tuple[UInt8Array, list[tuple[int, int]], int]:
    """Return all planes' bytes, where each plane of each chunk lies, and the rotation."""
    pieces = -(-count // _CHUNK) * width
    lengths = read_part(codes, name, "lengths", torch.uint32, pieces).numpy().astype(np.int64)
    planes = read_part(codes, name, "planes", torch.uint8, int(lengths.sum())).numpy()
    rotation = int(read_part(codes, name, "rotation", torch.uint8, 1))
    if rotation >= _BITS:
        raise CorruptArtifactError(f"The codes of {name!r} are rotated by {rotation} bits, which is never written.")
    ends = np.cumsum(lengths)
    return planes, list(zip((ends - lengths).tolist(), ends.tolist(), strict=True)), rotation


def _squeezed(chunk: Integers, rotation: int, compressor: zstandard.ZstdCompressor) -> list[bytes]:
    """Return each plane of a chunk, which is changed, the least significant first, in its smallest form."""
    rotated, kind = _rotated(chunk, rotation), chunk.dtype.type
    # A cast keeps the lowest byte, and takes half the time of a copy of every other byte.
    shifted = (rotated >> kind(_BITS * plane) if plane else rotated for plane in range(chunk.itemsize))
    return [_smallest(plane.astype(np.uint8), compressor) for plane in shifted]


def _smallest(plane: UInt8Array, compressor: zstandard.ZstdCompressor) -> bytes:
    if not plane.any():
        return b""
    squeezed = compressor.compress(plane.data)
    return squeezed if len(squeezed) < len(plane) else plane.tobytes()


def _compressor() -> zstandard.ZstdCompressor:
    """Return a compressor, which several threads must not use at once."""
    return zstandard.ZstdCompressor(compression_params=_SETTING)


def _expanded(data: UInt8Array, count: int, name: str) -> UInt8Array | int:
    """Return the bytes of a plane of a chunk, (count,), or 0 where all are."""
    if len(data) in (0, count):
        return data if len(data) else 0
    try:
        frame = data.data
        if zstandard.frame_content_size(frame) != count:  # before memory is taken for it
            raise zstandard.ZstdError(f"it is not of {count:,} bytes")
        plain = zstandard.ZstdDecompressor().decompress(frame, max_output_size=count, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptArtifactError(f"A plane of the codes of {name!r} cannot be expanded: {error}.") from error
    return np.frombuffer(plain, dtype=np.uint8)


def _rotated(integers: Integers, bits: int) -> Integers:
    """Return integers rotated right by so many bits, left where that is negative; in place."""
    if bits == 0:
        return integers
    width, kind = _BITS * integers.itemsize, integers.dtype.type
    high = np.left_shift(integers, kind((-bits) % width))
    np.right_shift(integers, kind(bits % width), out=integers)
    return np.bitwise_or(integers, high, out=integers)
