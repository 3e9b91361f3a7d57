"""Positions: exact round trips, the fewest bytes, and streams from anywhere."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.base.errors import CorruptArtifactError
from impart_core.codec.positions import (
    Int64Array,
    PositionCodes,
    decode_positions,
    encode_positions,
    most_position_bytes,
    position_bytes,
)

SIZE = 500
position_sets = st.sets(st.integers(0, SIZE - 1), max_size=60).map(
    lambda found: np.array(sorted(found), dtype=np.int64)
)
streams = st.binary(max_size=70).map(lambda data: np.frombuffer(data, dtype=np.uint8))


def stored_bytes(codes: PositionCodes) -> int:
    return len(codes.quotients) + len(codes.remainders)


def bit_by_bit(codes: PositionCodes, count: int) -> list[int]:
    """Decode from the definition, one bit after the other."""
    unary = int.from_bytes(codes.quotients.tobytes(), "little")
    packed = int.from_bytes(codes.remainders.tobytes(), "little")
    positions, previous = [], -1
    for i in range(count):
        quotient = 0
        while not unary & 1:
            quotient, unary = quotient + 1, unary >> 1
        unary >>= 1
        remainder = (packed >> (i * codes.width)) & ((1 << codes.width) - 1)
        previous += (quotient << codes.width) + remainder + 1
        positions.append(previous)
    assert unary == 0
    return positions


@given(positions=position_sets)
def test_positions_come_back_and_mean_what_the_definition_says(positions: Int64Array) -> None:
    codes = encode_positions(positions)
    assert np.array_equal(decode_positions(codes, len(positions), SIZE, "w"), positions)
    assert bit_by_bit(codes, len(positions)) == positions.tolist()


def gaps_of(kind: str, size: float, count: int, seed: int) -> Int64Array:
    """Draw gaps: about as large as `size`, all of nearly the same, or next to none but a few."""
    generator = np.random.default_rng(seed)
    if kind == "geometric":
        return generator.geometric(1 / (1 + size), count) - 1
    if kind == "equal":
        return np.full(count, int(size)) + (generator.random(count) < 0.1)
    return np.where(generator.random(count) < 0.05, int(20 * size), 0)


@given(
    kind=st.sampled_from(["geometric", "equal", "few"]),
    size=st.floats(0, 12).map(lambda power: 2**power - 1),
    count=st.integers(0, 400) | st.integers(16_000, 17_000),
    seed=st.integers(0, 1000),
)
def test_no_other_width_takes_fewer_bytes(kind: str, size: float, count: int, seed: int) -> None:
    gaps = gaps_of(kind, size, count, seed)
    positions = np.cumsum(gaps + 1) - 1
    sizes = [-(-(int((gaps >> b).sum()) + count) // 8) + -(-count * b // 8) for b in range(33)]
    codes = encode_positions(positions)
    assert stored_bytes(codes) == position_bytes(positions) == min(sizes)
    assert codes.width == sizes.index(min(sizes))
    whole = int(positions[-1]) + 1 if count else 0
    assert stored_bytes(codes) <= -(-whole // 8)  # the bitmap's
    assert np.array_equal(decode_positions(codes, count, whole, "w"), positions)


def test_dense_positions_are_stored_as_their_bitmap() -> None:
    positions = np.array([0, 1, 3, 4, 5, 7, 9], dtype=np.int64)
    codes = encode_positions(positions)
    assert codes.width == 0
    assert codes.quotients.tolist() == [0b10111011, 0b10]
    assert len(codes.remainders) == 0


def test_sparse_positions_take_a_few_bits_each() -> None:
    positions = np.arange(31, 32 * 1000, 32, dtype=np.int64)  # gaps of 31: one bit of unary beside 5, two beside 4
    codes = encode_positions(positions)
    assert codes.width == 4
    assert stored_bytes(codes) == 1000 * 6 / 8


@given(positions=position_sets, one=st.integers(0, SIZE - 1))
def test_one_position_more_never_takes_fewer_bytes(positions: Int64Array, one: int) -> None:
    assert position_bytes(np.union1d(positions, [one])) >= position_bytes(positions)


@given(positions=position_sets)
def test_the_most_bytes_are_never_exceeded(positions: Int64Array) -> None:
    assert position_bytes(positions) <= most_position_bytes(len(positions), SIZE)


@pytest.mark.parametrize("size", [1, 2, 8, 9, 500, 10**6, 2**40])
def test_the_most_bytes_of_one_position_are_those_of_the_last(size: int) -> None:
    assert most_position_bytes(1, size) == position_bytes(np.array([size - 1], dtype=np.int64))


@given(width=st.integers(0, 255), quotients=streams, remainders=streams, count=st.integers(0, 600))
@settings(max_examples=300)
def test_any_streams_give_rising_positions_in_the_tensor_or_are_refused_by_name(
    width: int, quotients: np.ndarray, remainders: np.ndarray, count: int
) -> None:
    check_any(PositionCodes(width, quotients, remainders), count)


@given(positions=position_sets, stream=st.booleans(), data=st.data())
def test_so_do_streams_with_a_flipped_bit(positions: Int64Array, stream: bool, data: st.DataObject) -> None:
    codes = encode_positions(positions)
    flipped = (codes.quotients if stream else codes.remainders).copy()
    if len(flipped):
        flipped[data.draw(st.integers(0, len(flipped) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    parts = (flipped, codes.remainders) if stream else (codes.quotients, flipped)
    check_any(PositionCodes(codes.width, *parts), len(positions))


def check_any(codes: PositionCodes, count: int) -> None:
    try:
        positions = decode_positions(codes, count, SIZE, "layer.w")
    except CorruptArtifactError as error:
        assert "codes of 'layer.w' do not hold positions in a tensor of 500 entries" in str(error)
        return
    assert len(positions) == count
    assert bool((np.diff(positions, prepend=-1) > 0).all())
    assert count == 0 or positions[-1] < SIZE


def test_each_damage_is_told_apart() -> None:
    codes, count = encode_positions(np.array([3, 90, 400, 499], dtype=np.int64)), 4
    assert codes.width > 0
    longer = np.append(codes.quotients, np.uint8(0))
    for changed, held, why in (
        (PositionCodes(33, codes.quotients, codes.remainders), count, "remainders of 33 bits"),
        (codes, 501, "501 of them"),
        (PositionCodes(codes.width, np.zeros(64, np.uint8), codes.remainders), count, "not possible"),
        (PositionCodes(codes.width, codes.quotients, codes.remainders[:-1]), count, "bytes of remainders"),
        (PositionCodes(codes.width, longer, codes.remainders), count, "quotients go on after their last position"),
        (PositionCodes(codes.width, codes.quotients[:0], codes.remainders), count, "those of 0 positions, not of 4"),
    ):
        with pytest.raises(CorruptArtifactError, match=why):
            decode_positions(changed, held, SIZE, "w")
    with pytest.raises(CorruptArtifactError, match="beyond its end"):
        decode_positions(codes, count, 499, "w")
