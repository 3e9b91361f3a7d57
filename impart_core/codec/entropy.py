"""Entropy coding of small signed integers: tables of counts, and a range coder (docs/format.md).

Symbols are grouped in runs; all symbols of a run share one table, the exact histogram of their magnitudes. Both signs
of a magnitude get half of its probability. Frequencies follow from the counts in integers alone, and the coder's own
arithmetic on them is exact, so that what one machine writes every other reads. The coder is that of `constriction`
(Bamler 2022, arXiv 2201.01741): a range coder with words of 32 bits, a state of 64 and probabilities of 24.

Tables are what a hostile file would lie in: the bytes of a stream must be about as many as its tables imply before
anything is decoded, and what is decoded must have the histogram that they say.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import constriction
import numpy as np
import numpy.typing as npt

from impart_core.base.errors import CorruptArtifactError

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

MOST_MAGNITUDE = 1023  # a larger one is stored as this
_FREQUENCY_BITS = 20  # frequencies of a table add up to 2 to this
_MOST_SYMBOLS = 1 << 40  # of a run: far above any matrix, and far below what overflows
_CHUNK = 1 << 20  # symbols decoded at once: 4 MiB
_LONGEST_NUMBER = 6  # bytes of a number: 42 bits
_WORD = 4


@dataclass(frozen=True)
class Table:
    """The histogram of a run of symbols.

    Attributes:
        counts: how many symbols have each magnitude, int64, (S + 1,), S the largest that occurs, at least 1.
    """

    counts: Int64Array

    @classmethod
    def of(cls, symbols: Int32Array) -> "Table":
        """Return the table of symbols, any shape, at most `MOST_MAGNITUDE` in size and not all zero."""
        return cls(np.bincount(np.abs(symbols).ravel()).astype(np.int64))

    @property
    def symbols(self) -> int:
        """How many symbols the run has."""
        return int(self.counts.sum())

    @cached_property
    def values(self) -> Int32Array:
        """The symbols that may occur, rising."""
        magnitudes = self.counts.nonzero()[0].astype(np.int32)
        positive = magnitudes[magnitudes > 0]
        return np.concatenate([-positive[::-1], magnitudes])

    @cached_property
    def frequencies(self) -> Int64Array:
        """The frequency of each of `values`; they add up to 2²⁰.

        Each gets 1 and its share of the rest, rounded down; what that leaves goes to the first of the most frequent.
        """
        weights = self.counts[np.abs(self.values)] * np.where(self.values == 0, 2, 1)
        room = (1 << _FREQUENCY_BITS) - len(weights)
        found = 1 + np.array([room * int(weight) // (2 * self.symbols) for weight in weights], dtype=np.int64)
        found[found.argmax()] += (1 << _FREQUENCY_BITS) - found.sum()
        return found

    @property
    def bits(self) -> float:
        """Bits that the run takes by these frequencies."""
        occurring = self.counts[np.abs(self.values)] / np.where(self.values == 0, 1, 2)
        return float((occurring * (_FREQUENCY_BITS - np.log2(self.frequencies))).sum())

    def packed(self) -> bytes:
        """Return the table as it is stored."""
        return number(len(self.counts) - 1) + b"".join(_packed_counts(self.counts.tolist()))

    def model(self) -> constriction.stream.model.Categorical:
        """Return the coder's model; a frequency is exact in its arithmetic, as the sum is a power of two."""
        return constriction.stream.model.Categorical(self.frequencies.astype(np.float64), perfect=False, lazy=False)


def number(value: int) -> bytes:
    """Return a number from 0 on as LEB128: 7 bits a byte, the lowest first, the high bit where more follow."""
    found = bytearray()
    while value >> 7:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def stream_bytes(tables: Sequence[Table]) -> int:
    """Return about how many bytes the stream of runs with these tables takes."""
    return int(sum(table.bits for table in tables) / 8) + 1


def encode_runs(runs: Sequence[Int32Array], tables: Sequence[Table]) -> bytes:
    """Return runs of symbols as one stream, in as few bytes as give it back.

    Args:
        runs: symbols, each (N,).
        tables: the table of each.
    """
    coder = constriction.stream.queue.RangeEncoder()
    for run, table in zip(runs, tables, strict=True):
        index = np.zeros(2 * MOST_MAGNITUDE + 1, dtype=np.int32)
        index[table.values + MOST_MAGNITUDE] = np.arange(len(table.values))
        coder.encode(index[run + MOST_MAGNITUDE], table.model())
    return _shortest(coder)


def decode_runs(data: bytes, tables: Sequence[Table], name: str) -> Iterator[Int32Array]:
    """Yield the symbols of all runs, a little at a time.

    Args:
        data: the stream.
        tables: the table of each run.
        name: the tensor, for errors.

    Raises:
        CorruptArtifactError: the stream is not of runs with these tables, which is noticed before anything is decoded
            where it is far too short or too long, and else at the end of a run.
    """
    implied = stream_bytes(tables)
    if abs(len(data) - implied) > 16 + implied // 100:
        raise CorruptArtifactError(
            f"The codes of {name!r} have a stream of {len(data):,} bytes, but its tables are of one of {implied:,}."
        )
    words = np.frombuffer(data + bytes(-len(data) % _WORD), dtype=">u4").astype(np.uint32)
    coder = constriction.stream.queue.RangeDecoder(words)
    for table in tables:
        model, found, left = table.model(), np.zeros(len(table.values), dtype=np.int64), table.symbols
        while left:
            indices = _decoded(coder, model, min(left, _CHUNK), name)
            found += np.bincount(indices, minlength=len(found))
            left -= len(indices)
            yield table.values[indices]
        if not np.array_equal(np.bincount(np.abs(table.values), found).astype(np.int64), table.counts):
            raise CorruptArtifactError(f"The codes of {name!r} have a stream that is not of its tables.")


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
        found = 0
        for place in range(_LONGEST_NUMBER):
            (byte,) = self.take(1)
            found |= (byte & 127) << 7 * place
            if byte < 128:
                return found
        raise CorruptArtifactError(f"The codes of {self._name!r} have a number of more than 42 bits.")

    def table(self) -> Table:
        """Return a table; see `Table.packed`.

        Raises:
            CorruptArtifactError: it is none.
        """
        largest, counts = self.number(), list[int]()
        while len(counts) <= min(largest, MOST_MAGNITUDE):
            counts.append(self.number())
            if not counts[-1]:
                counts += [0] * min(self.number(), MOST_MAGNITUDE)
        if not 1 <= largest <= MOST_MAGNITUDE or len(counts) != largest + 1 or not counts[-1]:
            raise CorruptArtifactError(f"The codes of {self._name!r} have a table of magnitudes up to {largest:,}.")
        if sum(counts) > _MOST_SYMBOLS:
            raise CorruptArtifactError(f"The codes of {self._name!r} have a table of {sum(counts):,} symbols.")
        return Table(np.array(counts, dtype=np.int64))


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


def _shortest(coder: constriction.stream.queue.RangeEncoder) -> bytes:
    """Return the shortest bytes that decode to what was encoded, where missing ones are zeros.

    Any point of the last interval does. The coder's own lies 2³² − 1 above its lower end, which says whether the words
    before it have been carried into.
    """
    data: bytes = coder.get_compressed().astype(">u4").tobytes()
    words, (lower, width) = coder.pos()
    upper = lower + width
    if lower + (1 << 32) - 1 < 1 << 64:
        upper = min(upper, 1 << 64)
    else:  # carried: the interval begins before the next word
        lower, upper = 0, upper - (1 << 64)
    kept = next(kept for kept in range(9) if _rounded_up(lower, kept) < upper)
    return data[: _WORD * words] + _rounded_up(lower, kept).to_bytes(8, "big")[:kept]


def _rounded_up(point: int, kept: int) -> int:
    """Return the first number of 64 bits from a point on of which all but the first bytes are zeros."""
    unit = 1 << 8 * (8 - kept)
    return -(-point // unit) * unit


def _decoded(
    coder: constriction.stream.queue.RangeDecoder, model: constriction.stream.model.Categorical, count: int, name: str
) -> Int32Array:
    try:
        found: Int32Array = coder.decode(model, count)
    except (AssertionError, ValueError) as error:  # what constriction makes of a point outside of all intervals
        raise CorruptArtifactError(f"The codes of {name!r} have a stream that is not of its tables.") from error
    return found
