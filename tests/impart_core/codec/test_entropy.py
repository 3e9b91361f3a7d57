"""Entropy coding: what is encoded comes back, in about its entropy, and streams or tables that lie are refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.base.errors import CorruptArtifactError
from impart_core.codec.entropy import (
    MOST_MAGNITUDE,
    ByteReader,
    Int32Array,
    Table,
    decode_runs,
    encode_runs,
    number,
    stream_bytes,
)


@st.composite
def runs(draw: st.DrawFn) -> Int32Array:
    """Draw symbols of any spread, heavy tails included, not all zero."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    count, spread = draw(st.integers(1, 400)), draw(st.sampled_from([0.05, 0.4, 3.0, 200.0]))
    found = np.clip(np.rint(rng.standard_t(3, count) * spread), -MOST_MAGNITUDE, MOST_MAGNITUDE).astype(np.int32)
    found[0] = found[0] or 1
    return found


def decoded(data: bytes, tables: list[Table]) -> Int32Array:
    return np.concatenate(list(decode_runs(data, tables, "w")))


@given(st.lists(runs(), min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_what_is_encoded_comes_back_in_about_as_many_bytes_as_tables_imply(several: list[Int32Array]) -> None:
    tables = [Table.of(run) for run in several]
    data = encode_runs(several, tables)
    assert np.array_equal(decoded(data, tables), np.concatenate(several))
    assert abs(len(data) - stream_bytes(tables)) <= 1 + stream_bytes(tables) // 1000
    if data:  # no byte of it is there for nothing
        with pytest.raises(CorruptArtifactError):
            found = decoded(data[:-1], tables)
            assert not np.array_equal(found, np.concatenate(several))
            raise CorruptArtifactError("other symbols with the same histogram")
    reader = ByteReader(b"".join(table.packed() for table in tables), "w")
    assert all(np.array_equal(reader.table().counts, table.counts) for table in tables)
    assert reader.left == 0


def test_a_stream_is_within_two_per_cent_of_its_entropy() -> None:
    symbols = np.rint(np.random.default_rng(0).standard_normal(200_000) / 1.75).astype(np.int32)
    shares = np.unique(symbols, return_counts=True)[1] / len(symbols)
    entropy = -(shares * np.log2(shares)).sum() * len(symbols) / 8
    table = Table.of(symbols)
    assert entropy < len(encode_runs([symbols], [table])) + len(table.packed()) < 1.001 * entropy


def test_frequencies_add_up_whatever_the_counts() -> None:
    for counts in ([0, 1], [10**9, 1], [3, 0, 0, 1], [1] * 1024):
        table = Table(np.array(counts, dtype=np.int64))
        assert table.frequencies.sum() == 1 << 20
        assert table.frequencies.min() >= 1
        assert list(table.values) == sorted(-table.values)


@pytest.mark.parametrize("value", [0, 1, 127, 128, 16383, 16384, 2**40])
def test_numbers_come_back(value: int) -> None:
    assert ByteReader(number(value), "w").number() == value


@pytest.mark.parametrize(
    "data",
    [
        b"",
        number(0) + number(5),  # all zeros
        number(2) + number(1) + number(1),  # cut
        number(2) + number(1) + number(1) + number(0) + number(0),  # the largest does not occur
        number(1024) + number(1) * 1025,
        number(2) + number(0) + number(2**40) + number(1),  # more zeros than magnitudes
        number(1) + number(2**41) + number(1),
        b"\xff" * 9,
    ],
)
def test_a_table_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptArtifactError, match="'w'"):
        ByteReader(data, "w").table()


def test_a_table_that_claims_more_than_its_stream_is_refused_before_anything_is_decoded() -> None:
    table = Table(np.array([1 << 39, 1 << 39], dtype=np.int64))
    with pytest.raises(
        CorruptArtifactError, match=r"'w' have a stream of 100 bytes, but its tables are of one of 206,"
    ):
        next(decode_runs(bytes(100), [table], "w"))


def test_a_stream_of_other_symbols_is_refused() -> None:
    symbols = np.tile(np.array([0, 1, -2, 0, 0], dtype=np.int32), 200)
    table = Table.of(symbols)
    data = bytearray(encode_runs([symbols], [table]))
    refused = 0
    for at in range(len(data)):
        other = bytes([*data[:at], data[at] ^ 64, *data[at + 1 :]])
        try:
            decoded(other, [table])
        except CorruptArtifactError as error:
            assert "'w'" in str(error)
            refused += 1
    assert refused > 0.8 * len(data)
