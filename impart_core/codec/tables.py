"""How often each magnitude occurs in a run of symbols, as stored bytes and as frequencies (docs/format.md).

A table is exact, the counts themselves, or coarse: four bits for each magnitude say how likely a larger one is, to a
quarter of a unit of log odds at most, which lengthens symbols by less than 1 %. Coarse tables are for short runs.
Frequencies follow from what is stored in integers alone, so that every machine has the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from impart_core.base.errors import CorruptArtifactError

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

MOST_MAGNITUDE = 1023  # a larger one is stored as this
FREQUENCY_BITS = 20  # frequencies of a table add up to 2 to this
MOST_COARSE = 15  # the largest magnitude of a coarse table
_MOST_SYMBOLS = 1 << 40  # of a run: far above any matrix, and far below what overflows
_LONGEST_NUMBER = 6  # bytes of a number: 42 bits
_NIBBLE = 15
_WHOLE = 1 << 40  # the weight of all magnitudes of a coarse table
# Probabilities of a larger magnitude, of 65536: log odds from −4.5 to 3 in steps of ½.
_LARGER = (720, 1179, 1921, 3108, 4971, 7812, 11955, 17625, 24743, 32768, 40793, 47911, 53581, 57724, 60565, 62428)
_BITS_LARGER = 16 - np.log2(np.array(_LARGER, dtype=np.float64))
_BITS_THIS = 16 - np.log2(65536 - np.array(_LARGER, dtype=np.float64))


@dataclass(frozen=True)
class Table:
    """The magnitudes of a run of symbols.

    Attributes:
        weights: how often each magnitude occurs, int64, (S + 1,), S the largest that occurs, at least 1: counts, or of
            a coarse table any multiple of them.
        symbols: how many symbols the run has.
        codes: of a coarse table the code of each magnitude but the last; None: the weights are counts.
    """

    weights: Int64Array
    symbols: int
    codes: tuple[int, ...] | None = None

    @classmethod
    def exact(cls, counts: Int64Array) -> "Table":
        """Return the table of a histogram."""
        return cls(counts, int(counts.sum()))

    @classmethod
    def coarse(cls, codes: tuple[int, ...], symbols: int) -> "Table":
        """Return the table that codes stand for, 1 to `MOST_COARSE` of them, each below 16."""
        weights, rest = [], _WHOLE
        for code in codes:
            larger = rest * _LARGER[code] >> 16
            weights.append(max(1, rest - larger))
            rest = larger
        return cls(np.array([*weights, max(1, rest)], dtype=np.int64), symbols, codes)

    @classmethod
    def of(cls, symbols: Int32Array, unit: int) -> "Table":
        """Return the table with which symbols take the fewest bytes.

        Args:
            symbols: any shape, at most `MOST_MAGNITUDE` in size and not all zero.
            unit: what their number is a multiple of.
        """
        return cls.shorter(np.bincount(np.abs(symbols).ravel()).astype(np.int64), unit)

    @classmethod
    def shorter(cls, counts: Int64Array, unit: int) -> "Table":
        """Return the table with which symbols of a histogram take the fewest bytes; see `of`."""
        exact = cls.exact(counts)
        if len(counts) - 1 > MOST_COARSE:
            return exact
        coarse = cls.coarse(tuple(coarse_codes(counts).tolist()), exact.symbols)
        sizes = [8 * len(table.packed(unit)) + table.bits_of(counts) for table in (exact, coarse)]
        return exact if sizes[0] <= sizes[1] else coarse

    @cached_property
    def values(self) -> Int32Array:
        """The symbols that may occur, rising."""
        magnitudes = self.weights.nonzero()[0].astype(np.int32)
        positive = magnitudes[magnitudes > 0]
        return np.concatenate([-positive[::-1], magnitudes])

    @cached_property
    def frequencies(self) -> Int64Array:
        """The frequency of each of `values`; they add up to 2²⁰.

        Each gets 1 and its share of the rest, rounded down; what that leaves goes to the first of the most frequent.
        """
        weights = self.weights[np.abs(self.values)] * np.where(self.values == 0, 2, 1)
        room, whole = (1 << FREQUENCY_BITS) - len(weights), 2 * int(self.weights.sum())
        found = 1 + np.array([room * int(weight) // whole for weight in weights], dtype=np.int64)
        found[found.argmax()] += (1 << FREQUENCY_BITS) - found.sum()
        return found

    @property
    def bits(self) -> float:
        """Bits that the run takes by these frequencies, about that of a coarse table."""
        return self.bits_of(self.weights) * self.symbols / int(self.weights.sum())

    def bits_of(self, counts: Int64Array) -> float:
        """Return the bits of as many symbols of each magnitude; both signs are equally many."""
        occurring = counts[np.abs(self.values)] / np.where(self.values == 0, 1, 2)
        return float((occurring * (FREQUENCY_BITS - np.log2(self.frequencies))).sum())

    def packed(self, unit: int) -> bytes:
        """Return the table as it is stored; `unit` as in `of`."""
        if self.codes is None:
            return b"\0" + number(len(self.weights) - 1) + b"".join(_packed_counts(self.weights.tolist()))
        multiple = self.symbols // unit
        head = bytes([16 * len(self.codes) + min(multiple - 1, _NIBBLE)])
        more = number(multiple - 1 - _NIBBLE) if multiple > _NIBBLE else b""
        padded = (*self.codes, 0)
        return head + more + bytes(padded[at] + 16 * padded[at + 1] for at in range(0, len(self.codes), 2))


def coarse_codes(counts: Int64Array | FloatArray) -> Int64Array:
    """Return the code of each magnitude but the last with which symbols of a histogram take the fewest bits."""
    larger = counts.sum() - np.cumsum(counts)[:-1]
    bits = counts[:-1, None] * _BITS_THIS + larger[:, None] * _BITS_LARGER
    found: Int64Array = bits.argmin(axis=1)
    return found


def table_bytes(counts: Int64Array | FloatArray) -> float:
    """Return the bytes of a run with this histogram and of its table, but for a rounding, by the shorter table."""
    some = counts[counts > 0]
    bits = (some * (np.log2(counts.sum()) - np.log2(some))).sum()
    sizes = 1 + (some >= 1 << 7).astype(int) + (some >= 1 << 14) + (some >= 1 << 21)
    zeros = counts[: counts.nonzero()[0][-1]] == 0
    runs = int(zeros[:1].sum() + (zeros[1:] & ~zeros[:-1]).sum())
    found = float(bits) / 8 + 1 + int(sizes.sum()) + 2 * runs + (1 if len(counts) <= 128 else 2)
    most = int(counts.nonzero()[0][-1])
    if 1 <= most <= MOST_COARSE:
        kept = counts[: most + 1]
        larger = kept.sum() - np.cumsum(kept)[:-1]
        coarse = kept[:-1, None] * _BITS_THIS + larger[:, None] * _BITS_LARGER
        found = min(found, float(coarse.min(axis=1).sum()) / 8 + 1 + (most + 1) // 2)
    return found + float(counts[1:].sum()) / 8


def number(value: int) -> bytes:
    """Return a number from 0 on as LEB128: 7 bits a byte, the lowest first, the high bit where more follow."""
    found = bytearray()
    while value >> 7:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def read_number(data: bytes, at: int) -> tuple[int, int]:
    """Return the number that begins at a place, see `number`, and where it ends.

    Raises:
        ValueError: it is cut short or of more than 42 bits.
    """
    value = 0
    for place, byte in enumerate(data[at : at + _LONGEST_NUMBER]):
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, at + place + 1
    raise ValueError("a number is cut short or too long")


class ByteReader:
    """Reads stored numbers and tables one after another; all that does not fit is an error by the tensor's name."""

    def __init__(self, data: bytes, name: str) -> None:
        """Start at the first byte."""
        self._data, self._name, self._at = data, name, 0

    def take(self, count: int) -> bytes:
        """Return the next bytes.

        Raises:
            CorruptArtifactError: there are not as many.
        """
        if count > self.left:
            raise CorruptArtifactError(f"The codes of {self._name!r} are cut short.")
        self._at += count
        return self._data[self._at - count : self._at]

    @property
    def left(self) -> int:
        """How many bytes follow."""
        return len(self._data) - self._at

    def rest(self) -> bytes:
        """Return all that follows."""
        return self.take(self.left)

    def number(self) -> int:
        """Return a number; see `number`.

        Raises:
            CorruptArtifactError: it is cut short or of more than 42 bits.
        """
        try:
            found, self._at = read_number(self._data, self._at)
        except ValueError:
            self.take(_LONGEST_NUMBER)  # there are not as many where it is cut short
            raise CorruptArtifactError(f"The codes of {self._name!r} have a number of more than 42 bits.") from None
        return found

    def table(self, unit: int) -> Table:
        """Return a table; see `Table.packed`.

        Raises:
            CorruptArtifactError: it is none.
        """
        (head,) = self.take(1)
        most, multiple = divmod(head, 16)
        if not most:
            if multiple:
                raise CorruptArtifactError(f"The codes of {self._name!r} have a table of an unknown kind.")
            return self.exact_table()
        multiple += 1 + (self.number() if multiple == _NIBBLE else 0)
        codes = [half for byte in self.take((most + 1) // 2) for half in (byte & _NIBBLE, byte >> 4)]
        return self._limited(Table.coarse(tuple(codes[:most]), multiple * unit))

    def exact_table(self) -> Table:
        """Return the table of counts that follow; errors as above."""
        largest, counts = self.number(), list[int]()
        while len(counts) <= min(largest, MOST_MAGNITUDE):
            counts.append(self.number())
            if not counts[-1]:
                counts += [0] * min(self.number(), MOST_MAGNITUDE)
        if not 1 <= largest <= MOST_MAGNITUDE or len(counts) != largest + 1 or not counts[-1]:
            raise CorruptArtifactError(f"The codes of {self._name!r} have a table of magnitudes up to {largest:,}.")
        return self._limited(Table.exact(np.array(counts, dtype=np.int64)))

    def _limited(self, table: Table) -> Table:
        if table.symbols > _MOST_SYMBOLS:
            raise CorruptArtifactError(f"The codes of {self._name!r} have a table of {table.symbols:,} symbols.")
        return table


def _packed_counts(counts: Sequence[int]) -> Iterator[bytes]:
    """Yield each count; after a zero, how many zeros follow it, in place of these."""
    at = 0
    while at < len(counts):
        yield number(counts[at])
        at += 1
        if not counts[at - 1]:
            zeros = next(further for further in range(len(counts)) if counts[at + further])  # the last is none
            yield number(zeros)
            at += zeros
