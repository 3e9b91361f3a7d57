"""Entropy coding of small signed integers: a range coder of runs of symbols (docs/format.md).

All symbols of a run share one table. Both signs of a magnitude get half of its probability. The coder's arithmetic is
exact, so that what one machine writes every other reads. It is that of `constriction` (Bamler 2022, arXiv
2201.01741): a range coder with words of 32 bits, a state of 64 and probabilities of 24.

Tables are what a hostile file would lie in: the bytes of a stream must be about as many as its tables imply before
anything is decoded, and what is decoded must have the histogram that an exact table says.
"""

from collections.abc import Iterator, Sequence

import constriction
import numpy as np

from impart_core.base.errors import CorruptArtifactError
from impart_core.codec.tables import MOST_MAGNITUDE, Int32Array, Table

_CHUNK = 1 << 20  # symbols decoded at once: 4 MiB
_WORD = 4


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
        coder.encode(index[run + MOST_MAGNITUDE], _model(table))
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
    exact = all(table.codes is None for table in tables)
    if abs(len(data) - implied) > 16 + (implied // 100 if exact else implied):
        raise CorruptArtifactError(
            f"The codes of {name!r} have a stream of {len(data):,} bytes, but its tables are of one of {implied:,}."
        )
    words = np.frombuffer(data + bytes(-len(data) % _WORD), dtype=">u4").astype(np.uint32)
    coder = constriction.stream.queue.RangeDecoder(words)
    for table in tables:
        model, found, left = _model(table), np.zeros(len(table.values), dtype=np.int64), table.symbols
        while left:
            indices = _decoded(coder, model, min(left, _CHUNK), name)
            found += np.bincount(indices, minlength=len(found))
            left -= len(indices)
            yield table.values[indices]
        counts = np.bincount(np.abs(table.values), found).astype(np.int64)
        if table.codes is None and not np.array_equal(counts, table.weights):
            raise CorruptArtifactError(f"The codes of {name!r} have a stream that is not of its tables.")


def _model(table: Table) -> constriction.stream.model.Categorical:
    """Return the coder's model; a frequency is exact in its arithmetic, as the sum is a power of two."""
    return constriction.stream.model.Categorical(table.frequencies.astype(np.float64), perfect=False, lazy=False)


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
