"""Integers in byte planes: all come back, in few bytes, and what is damaged or claims too much is refused."""

from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from impart_core.base.errors import CorruptArtifactError
from impart_core.codec.parts import Codes, nbytes
from impart_core.codec.planes import (
    Integers,
    best_rotation,
    check_planes,
    decode_planes,
    encode_planes,
    sample_of,
)

CHUNK = 1 << 17
WIDTHS = (1, 2, 4, 8)


def encode(integers: Integers) -> Codes:
    """Return the parts of integers."""
    return encode_planes(lambda start, stop: integers[start:stop].copy(), len(integers))


def decode(codes: Codes, count: int, width: int) -> Integers:
    """Return the integers of parts."""
    chunks = [chunk.copy() for chunk in decode_planes(codes, "w", count, width)]
    return np.concatenate(chunks) if chunks else np.empty(0, dtype=f"<u{width}")


@given(npst.arrays(st.sampled_from([f"<u{width}" for width in WIDTHS]), st.integers(0, 300)))
def test_any_integers_come_back(integers: Integers) -> None:
    assert np.array_equal(decode(encode(integers), len(integers), integers.itemsize), integers)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("count", [CHUNK - 1, CHUNK, 2 * CHUNK + 3])
def test_integers_of_several_chunks_come_back(width: int, count: int) -> None:
    integers = np.random.default_rng(0).geometric(0.02, count).astype(f"<u{width}")
    integers[CHUNK // 2 :] *= np.arange(count - CHUNK // 2) < CHUNK  # the last chunk has planes of zeros
    assert np.array_equal(decode(encode(integers), count, width), integers)


def test_planes_take_little_more_than_the_entropy() -> None:
    integers = np.random.default_rng(0).geometric(0.01, 1 << 18).astype("<u2")
    shares = np.bincount(integers) / len(integers)
    entropy = -(shares[shares > 0] * np.log2(shares[shares > 0])).sum() / 8
    found = nbytes(encode(integers))
    assert entropy * len(integers) < found < 1.03 * entropy * len(integers)  # two planes, Huffman codes
    sample = sample_of(lambda start, stop: integers[start:stop].copy(), len(integers))
    assert best_rotation(sample)[1] / len(sample) == pytest.approx(found / len(integers), rel=0.05)


def test_zeros_take_four_bytes_a_plane_of_a_chunk() -> None:
    assert nbytes(encode(np.zeros(3 * CHUNK, dtype="<u2"))) == 3 * 2 * 4 + 1


def damaged(codes: Codes) -> dict[str, Codes]:
    """Return codes that are none, by what is wrong with them."""
    lengths, planes = codes["lengths"], codes["planes"]
    first = int(lengths[0])
    frame = bytes(planes[:first].tolist())
    plain = zstandard.decompress(frame)

    def with_first(data: bytes) -> Codes:
        sizes = torch.tensor([len(data), *lengths.tolist()[1:]], dtype=torch.uint32)
        return {**codes, "lengths": sizes, "planes": torch.tensor([*data, *planes.tolist()[first:]], dtype=torch.uint8)}

    whole = zstandard.ZstdCompressor(write_content_size=True)
    return {
        "a part less": {part: code for part, code in codes.items() if part != "rotation"},
        "cut": {**codes, "planes": planes[:-1]},
        "longer": {**codes, "planes": torch.cat([planes, planes[:1]])},
        "a length less": {**codes, "lengths": lengths[:-1]},
        "another dtype": {**codes, "lengths": lengths.to(torch.int64)},
        "a rotation of 8": {**codes, "rotation": torch.tensor([8], dtype=torch.uint8)},
        "no frame": with_first(b"x" * first),
        "a frame cut": with_first(frame[:-1]),
        "a frame and more": with_first(frame + b"x"),
        "two frames": with_first(frame + frame),
        "of another size": with_first(whole.compress(plain + b"x")),
        "of 64 GiB, it says": with_first(frame[:4] + b"\xe0" + (1 << 36).to_bytes(8, "little") + frame[6:]),
        "of no size": with_first(zstandard.ZstdCompressor(write_content_size=False).compress(plain)),
    }


def test_what_is_damaged_is_refused_by_name() -> None:
    integers = np.random.default_rng(0).geometric(0.1, 1000).astype("<u2")
    codes = encode(integers)
    for what, other in damaged(codes).items():
        for read in (decode, lambda *given: check_planes(given[0], "w", *given[1:])):
            with pytest.raises(CorruptArtifactError, match="'w'"):
                raise AssertionError(f"{what}: {read(other, 1000, 2)}")
    for count, width in ((1000, 4), (CHUNK + 1, 2), (1 << 34, 2)):
        with pytest.raises(CorruptArtifactError, match="'w'"):
            decode(codes, count, width)


@given(st.data())
def test_a_flipped_byte_is_refused_or_gives_as_many_integers(data: Any) -> None:
    codes = encode(np.random.default_rng(0).geometric(0.1, 500).astype("<u2"))
    part = data.draw(st.sampled_from(sorted(codes)))
    octets = codes[part].clone().view(torch.uint8)
    octets[data.draw(st.integers(0, len(octets) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        assert len(decode({**codes, part: octets.view(codes[part].dtype)}, 500, 2)) == 500
    except CorruptArtifactError as error:
        assert "'w'" in str(error)
