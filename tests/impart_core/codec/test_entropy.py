"""Entropy coding: what is encoded comes back, in about its entropy, and streams or tables that lie are refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.base.errors import CorruptArtifactError
from impart_core.codec.entropy import decode_runs, encode_runs, stream_bytes
from impart_core.codec.tables import Int32Array, Table
from tests.impart_core.codec.test_tables import runs

WORD_BYTES = 4


def decoded(data: bytes, tables: list[Table]) -> Int32Array:
    return np.concatenate(list(decode_runs(data, tables, "w")))


@given(st.lists(runs(), min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_what_is_encoded_comes_back_in_about_as_many_bytes_as_tables_imply(several: list[Int32Array]) -> None:
    tables = [Table.exact(np.bincount(np.abs(run)).astype(np.int64)) for run in several]
    data = encode_runs(several, tables)
    assert np.array_equal(decoded(data, tables), np.concatenate(several))
    implied = stream_bytes(tables)
    # One stream of 256 does without another byte at its end. Rarely the last interval lies across the start of a word,
    # and is cut there: what is left of it may be so narrow that a point in it takes up to a word more.
    assert -8 - implied // 1000 <= len(data) - implied <= 1 + WORD_BYTES + implied // 1000
    if data:  # no byte of it is there for nothing
        with pytest.raises(CorruptArtifactError):
            found = decoded(data[:-1], tables)
            assert not np.array_equal(found, np.concatenate(several))
            raise CorruptArtifactError("other symbols with the same histogram")


@given(st.lists(runs(), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_with_the_shorter_tables_it_comes_back_as_well(several: list[Int32Array]) -> None:
    tables = [Table.of(run, len(run)) for run in several]
    assert np.array_equal(decoded(encode_runs(several, tables), tables), np.concatenate(several))


def test_a_stream_is_within_two_per_cent_of_its_entropy() -> None:
    symbols = np.rint(np.random.default_rng(0).standard_normal(200_000) / 1.75).astype(np.int32)
    shares = np.unique(symbols, return_counts=True)[1] / len(symbols)
    entropy = -(shares * np.log2(shares)).sum() * len(symbols) / 8
    table = Table.of(symbols, len(symbols))
    assert entropy < len(encode_runs([symbols], [table])) + len(table.packed(len(symbols))) < 1.001 * entropy


def test_a_table_that_claims_more_than_its_stream_is_refused_before_anything_is_decoded() -> None:
    table = Table.exact(np.array([1 << 39, 1 << 39], dtype=np.int64))
    with pytest.raises(
        CorruptArtifactError, match=r"'w' have a stream of 100 bytes, but its tables are of one of 206,"
    ):
        next(decode_runs(bytes(100), [table], "w"))


def test_a_stream_of_other_symbols_is_refused() -> None:
    symbols = np.tile(np.array([0, 1, -2, 0, 0], dtype=np.int32), 200)
    table = Table.exact(np.bincount(np.abs(symbols)).astype(np.int64))
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
