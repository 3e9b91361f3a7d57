"""Tables of symbols: what is stored comes back, the shorter kind is taken, and tables that lie are refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.base.errors import CorruptArtifactError
from impart_core.codec.tables import (
    MOST_COARSE,
    MOST_MAGNITUDE,
    ByteReader,
    Int32Array,
    Int64Array,
    Table,
    coarse_codes,
    number,
    table_bytes,
)


@st.composite
def runs(draw: st.DrawFn) -> Int32Array:
    """Draw symbols of any spread, heavy tails included, not all zero."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    count, spread = draw(st.integers(1, 400)), draw(st.sampled_from([0.05, 0.4, 3.0, 200.0]))
    found = np.clip(np.rint(rng.standard_t(3, count) * spread), -MOST_MAGNITUDE, MOST_MAGNITUDE).astype(np.int32)
    found[0] = found[0] or 1
    return found


def exact_of(symbols: Int32Array) -> tuple[Table, Int64Array]:
    counts = np.bincount(np.abs(symbols)).astype(np.int64)
    return Table.exact(counts), counts


@given(st.lists(st.tuples(runs(), st.integers(1, 40)), min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_tables_come_back(several: list[tuple[Int32Array, int]]) -> None:
    unit = 7
    tables = [
        Table.of(np.resize(run, unit * multiple), unit) for run, multiple in several if run[: unit * multiple].any()
    ]
    reader = ByteReader(b"".join(table.packed(unit) for table in tables), "w")
    for table in tables:
        found = reader.table(unit)
        assert (found.symbols, found.codes) == (table.symbols, table.codes)
        assert np.array_equal(found.weights, table.weights)
        assert np.array_equal(found.frequencies, table.frequencies)
    assert reader.left == 0


@given(runs())
@settings(max_examples=150, deadline=None)
def test_the_kind_of_table_is_the_one_with_fewer_bytes_and_these_are_foreseen(symbols: Int32Array) -> None:
    exact, counts = exact_of(symbols)
    table = Table.of(symbols, len(symbols))

    def size(one: Table) -> float:
        return len(one.packed(len(symbols))) + one.bits_of(counts) / 8

    assert size(table) <= size(exact)
    if len(counts) <= MOST_COARSE + 1:
        coarse = Table.coarse(tuple(coarse_codes(counts).tolist()), len(symbols))
        assert size(table) == min(size(exact), size(coarse))
    assert abs(table_bytes(counts) - size(table)) <= 4 + 0.01 * size(table)  # of long runs of zeros


@given(runs().filter(lambda run: np.abs(run).max() <= MOST_COARSE and (run == 0).mean() < 0.98))
@settings(max_examples=150, deadline=None)
def test_a_coarse_table_lengthens_symbols_by_little(symbols: Int32Array) -> None:
    exact, counts = exact_of(symbols)
    coarse = Table.coarse(tuple(coarse_codes(counts).tolist()), len(symbols))
    assert coarse.bits_of(counts) <= 1.01 * exact.bits_of(counts) + 2 * MOST_COARSE


def test_frequencies_add_up_whatever_the_counts() -> None:
    for counts in ([0, 1], [10**9, 1], [3, 0, 0, 1], [1] * 1024):
        table = Table.exact(np.array(counts, dtype=np.int64))
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
        b"\0" + number(0) + number(5),  # all zeros
        b"\0" + number(2) + number(1) + number(1),  # cut
        b"\0" + number(2) + number(1) + number(1) + number(0) + number(0),  # the largest does not occur
        b"\0" + number(1024) + number(1) * 1025,
        b"\0" + number(2) + number(0) + number(2**40) + number(1),  # more zeros than magnitudes
        b"\0" + number(1) + number(2**41) + number(1),
        b"\xff" * 9,
        b"\x01",  # of no kind
        b"\x20",  # codes are cut
        b"\x2f" + number(2**42 - 1) + b"\0",  # too many symbols
    ],
)
def test_a_table_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptArtifactError, match="'w'"):
        ByteReader(data, "w").table(8)
