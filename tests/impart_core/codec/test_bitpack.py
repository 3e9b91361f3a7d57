"""Packed codes: every width, exact byte counts, the same bits as arithmetic on one big number gives."""

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.codec import bitpack
from impart_core.codec.bitpack import pack, packed_bytes, unpack

widths = st.integers(1, 32)


@st.composite
def codes_of_a_width(draw: st.DrawFn) -> tuple[list[int], int]:
    width = draw(widths)
    return draw(st.lists(st.integers(0, 2**width - 1), max_size=50)), width


def as_one_number(codes: list[int], width: int) -> bytes:
    number = sum(code << (i * width) for i, code in enumerate(codes))
    return number.to_bytes((len(codes) * width + 7) // 8, "little")


@given(given_=codes_of_a_width(), chunk=st.sampled_from([8, 16, 1 << 16]))
@settings(deadline=None)
def test_a_stream_is_one_little_endian_number_and_gives_its_codes_back(
    given_: tuple[list[int], int], chunk: int
) -> None:
    codes, width = given_
    with patch.object(bitpack, "_CHUNK", chunk):
        packed = pack(np.array(codes, dtype=np.uint32), width)
        assert packed.tobytes() == as_one_number(codes, width)
        unpacked = unpack(packed, width, len(codes))
    assert unpacked.tolist() == codes
    assert unpacked.dtype == (np.uint8 if width <= 8 else np.uint16 if width <= 16 else np.uint32)


@pytest.mark.parametrize("width", range(1, 33))
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 65535, 65536, 65537])
def test_codes_take_exactly_their_bits_rounded_up_to_a_byte(width: int, count: int) -> None:
    codes = np.random.default_rng(width).integers(0, 2**width, count, dtype=np.uint32)
    packed = pack(codes, width)
    assert len(packed) == packed_bytes(count, width) == -(-count * width // 8)
    assert np.array_equal(unpack(packed, width, count), codes)


def test_golden_streams() -> None:
    """These are pinned for good: a change would make every published artifact undecodable."""
    assert pack(np.array([5, 1, 7, 0, 2], dtype=np.uint8), 3).tolist() == [0b11_001_101, 0b010_000_1]
    assert pack(np.array([0xABC, 0x123], dtype=np.uint16), 12).tolist() == [0xBC, 0x3A, 0x12]


@given(given_=codes_of_a_width())
def test_codes_may_come_in_any_unsigned_dtype_that_holds_them(given_: tuple[list[int], int]) -> None:
    codes, width = given_
    expected = pack(np.array(codes, dtype=np.uint32), width)
    for dtype in (np.uint8, np.uint16):
        if width <= 8 * np.dtype(dtype).itemsize:
            assert np.array_equal(pack(np.array(codes, dtype=dtype), width), expected)


@pytest.mark.parametrize("width", [0, -1, 33])
def test_a_width_outside_1_to_32_is_refused(width: int) -> None:
    with pytest.raises(ValueError, match="1 to 32 bits"):
        pack(np.zeros(3, dtype=np.uint8), width)
    with pytest.raises(ValueError, match="1 to 32 bits"):
        unpack(np.zeros(3, dtype=np.uint8), width, 3)


def test_a_code_that_does_not_fit_its_width_is_refused() -> None:
    with pytest.raises(ValueError, match="code 8 does not fit 3 bits"):
        pack(np.array([1, 8], dtype=np.uint8), 3)


@pytest.mark.parametrize("length", [0, 1, 3])
def test_a_stream_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="5 codes of 3 bits take 2 bytes"):
        unpack(np.zeros(length, dtype=np.uint8), 3, 5)
