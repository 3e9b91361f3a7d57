"""The lossless stage: streams of quantised codes, made smaller by zstd's entropy coder where that helps.

Codes are first counted from their group's zero point, modulo the number of codes, so that all groups share one
distribution with its peak at zero. Each stream is then stored in the smallest of three forms: packed as it is; packed
and compressed; or a byte a code and compressed, which is better where codes do not end on bytes. Measured on Gaussian
values in groups of 128 (`make bench`): 0.72 of the packed size at 2 bits, 0.85 at 3, 0.90 at 4, 0.96 at 8.
"""

import zstandard

from impart_core.base.errors import CorruptArtifactError

PACKED, SQUEEZED, BYTES_SQUEEZED = 0, 1, 2
_LEVEL = 19  # streams are small, and are written once


def squeeze(data: bytes) -> bytes:
    """Return data compressed, without a checksum or its size: files have digests, and sizes follow from masks."""
    return zstandard.ZstdCompressor(level=_LEVEL, write_content_size=False, write_checksum=False).compress(data)


def expand(data: bytes, size: int, what: str) -> bytes:
    """Return what was compressed, of a size that is known.

    Raises:
        CorruptArtifactError: it is no such data, of another size, or more follows; no more than `size` is taken for it.
    """
    try:
        if zstandard.frame_content_size(data) != -1:  # ours never say their size, and memory would be taken by it
            raise zstandard.ZstdError("it says its size")
        found = zstandard.ZstdDecompressor().decompress(data, max_output_size=max(1, size), allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptArtifactError(f"The codes of {what!r} cannot be expanded: {error}.") from error
    if len(found) != size:
        raise CorruptArtifactError(f"The codes of {what!r} expand to {len(found):,} bytes, not {size:,}.")
    return found
