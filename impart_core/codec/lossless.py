"""The lossless stage: streams of quantised codes, made smaller by zstd's entropy coder where that helps.

Codes are first counted from their group's zero point, modulo the number of codes, so that all groups share one
distribution with its peak at zero. Each stream is then stored in the smallest of three forms: packed as it is; packed
and compressed; or a byte a code and compressed, which is better where codes do not end on bytes. Measured on Gaussian
values in groups of 128 (`make bench`): 0.72 of the packed size at 2 bits, 0.85 at 3, 0.90 at 4, 0.96 at 8.

Codes hardly repeat: what is saved is saved by the Huffman coder of literals. Matches as zstd's low levels take them
cost more than they save, and its highest levels weigh each of them, at 2 MB a second. The two settings here have next
to no matches, or few that are weighed. The smaller result is below that of level 19 on the deltas of the tiny zoo, in a
small part of its time, so that every try of a size search can afford it: 6 s instead of 47 for a 4096×11008 matrix.
"""

from collections.abc import Iterator

import zstandard

from impart_core.base.errors import CorruptArtifactError

PACKED, SQUEEZED, BYTES_SQUEEZED = 0, 1, 2
_PIECE = 32  # bytes expanded at once: in the worst case 4 of them stand for 128 KiB
_LARGEST_WINDOW = 8 << 20  # as any decoder takes (RFC 8878), and no stream of ours goes beyond
_PLAIN = {"write_content_size": False, "write_checksum": False, "window_log": 17, "search_log": 1}
_SETTINGS = (
    zstandard.ZstdCompressionParameters(
        hash_log=6, chain_log=6, min_match=7, strategy=zstandard.STRATEGY_FAST, target_length=0, **_PLAIN
    ),
    zstandard.ZstdCompressionParameters(
        hash_log=12, chain_log=12, min_match=4, strategy=zstandard.STRATEGY_BTULTRA, target_length=16, **_PLAIN
    ),
)


def squeeze(data: bytes) -> bytes:
    """Return data compressed, without a checksum or its size: files have digests, and sizes follow from masks."""
    found = (zstandard.ZstdCompressor(compression_params=setting).compress(data) for setting in _SETTINGS)
    return min(found, key=len)


def expanding(data: bytes, size: int, what: str) -> Iterator[bytes]:
    """Yield what was compressed, of a size that is known, a little at a time.

    Raises:
        CorruptArtifactError: it is no such data, of another size, or more follows. Nothing beyond `size` is yielded.
    """
    found, at = 0, 0
    try:
        if zstandard.frame_content_size(data) != -1:  # ours never say their size, and memory would be taken by it
            raise zstandard.ZstdError("it says its size")
        stream = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).decompressobj()
        while at < len(data) and not stream.eof:
            piece = stream.decompress(data[at : at + _PIECE])
            found, at = found + len(piece), at + _PIECE
            if found > size:
                raise zstandard.ZstdError(f"it goes on after {size:,} bytes")
            yield piece
        if not stream.eof:
            raise zstandard.ZstdError("it is cut short")
        if at < len(data) or stream.unused_data:
            raise zstandard.ZstdError("something follows its end")
    except zstandard.ZstdError as error:
        raise CorruptArtifactError(f"The codes of {what!r} cannot be expanded: {error}.") from error
    if found != size:
        raise CorruptArtifactError(f"The codes of {what!r} expand to {found:,} bytes, not {size:,}.")


def expand(data: bytes, size: int, what: str) -> bytes:
    """Return what was compressed as a whole; see `expanding`."""
    return b"".join(expanding(data, size, what))
