"""Entropy-coded symbols of a matrix as stored bytes: vectors or entries, their tables and scales (docs/format.md).

A scale is s = 2^(e − c/16) with an exponent e that all share and a code c of one byte: to 2.2 % at most, which is as
good as exact beside the noise of symbols. Vectors are stored as integers; what they are to be multiplied by, and the
gain of the pair, is in its scale.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from impart_core.base.errors import CorruptArtifactError, TensorValueError
from impart_core.codec.bitpack import UInt8Array
from impart_core.codec.entropy import decode_runs, encode_runs
from impart_core.codec.parts import Codes, read_part, require_proportion
from impart_core.codec.tables import ByteReader, FloatArray, Int32Array, Int64Array, Table, number

PART = "symbols"
OLD_PART = "codes"  # of version 1: how long it is, exact tables only
NOTHING = b"\0"  # no tables: nothing is kept
Kind = Literal[0, 1]
FACTORS: Kind = 0
ENTRIES: Kind = 1
SMALLEST_RATIO = 2.0**-14  # of scales to the largest: what is far below it has no code
LEAST_ENTRY = 2.0**-136  # a matrix whose largest entry is below has no scales that have a code: it is taken for zero
_MOST_RUNS = 64
Float32Array = npt.NDArray[np.float32]
_OCTAVE = 16  # codes of a scale an octave
_OFFSET = 128  # of the exponent, as it is stored
# 2^(−i/16), float32.
_ROOTS = np.array(
    [
        *(1.0, 0.9576032757759094, 0.9170040488243103, 0.8781260848045349),
        *(0.8408964276313782, 0.8052451610565186, 0.7711054086685181, 0.7384130954742432),
        *(0.7071067690849304, 0.6771277785301208, 0.6484197974205017, 0.6209288835525513),
        *(0.5946035385131836, 0.5693942904472351, 0.5452538728713989, 0.5221368670463562),
    ],
    dtype=np.float32,
)


@dataclass(frozen=True)
class Stored:
    """Symbols of a matrix whose stream is not yet decoded.

    Attributes:
        kind: whether of vectors or of entries.
        shape: (m, n).
        exponent: of the scales, -128 to 127.
        tables: of each run: the vectors with the same step, u_k and v_k of each after the other; or all entries.
        scales: the code of each vector pair in the order of the runs, or one, uint8.
        stream: the symbols.
    """

    kind: int
    shape: tuple[int, int]
    exponent: int
    tables: tuple[Table, ...]
    scales: UInt8Array
    stream: bytes

    @classmethod
    def of(
        cls, kind: Kind, shape: tuple[int, int], runs: Sequence[Int32Array], scales: FloatArray, name: str
    ) -> "Stored":
        """Encode runs of symbols with their scales, (K,), more than 0.

        Args:
            kind: whether of vectors or of entries.
            shape: (m, n).
            runs: symbols, each (N,), N a multiple of m + n for vectors, m·n for entries.
            scales: of the symbols of each vector pair, or of all entries.
            name: the tensor, for errors.

        Raises:
            TensorValueError: a scale is above 2^127.
        """
        tables = tuple(Table.of(run, _unit(kind, shape)) for run in runs)
        exponent, codes = _scale_codes(scales, name)
        return cls(kind, shape, exponent, tables, codes, encode_runs(runs, tables))

    def packed(self) -> Codes:
        """Return them as they are stored."""
        tables = b"".join(table.packed(_unit(self.kind, self.shape)) for table in self.tables)
        rest = bytes([self.exponent + _OFFSET]) + tables + self.scales.tobytes() + self.stream
        return as_codes(number(2 * len(self.tables) + self.kind) + _check(self.shape, rest) + rest)

    def delta(self, name: str) -> torch.Tensor:
        """Return the matrix, float32, (m, n); errors as in `factors`."""
        right, left = self.factors(name)
        return right if left is None else left.T @ right

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return v̂, (K, n), and s·û, (K, m); or the matrix, (m, n), and None where entries are stored; float32.

        Raises:
            CorruptArtifactError: the stream is not of the tables.
        """
        symbols = np.empty(sum(table.symbols for table in self.tables), dtype=np.float32)
        at = 0
        for some in decode_runs(self.stream, self.tables, name):
            symbols[at : at + len(some)] = some
            at += len(some)
        scales = torch.from_numpy(self.values())
        if self.kind == ENTRIES:
            return torch.from_numpy(symbols).reshape(self.shape).mul_(scales), None
        pairs = torch.from_numpy(symbols).reshape(len(scales), sum(self.shape))
        return pairs[:, self.shape[0] :], pairs[:, : self.shape[0]] * scales[:, None]

    def scaled(self, gains: FloatArray, name: str) -> "Stored":
        """Return the same with scales times gains, (K,), more than 0; errors as in `of`."""
        exponent, codes = _scale_codes(self.values().astype(np.float64) * gains, name)
        return replace(self, exponent=exponent, scales=codes)

    def values(self) -> Float32Array:
        """Return the scales themselves, exact, (K,)."""
        found: Float32Array = np.ldexp(
            _ROOTS[self.scales % _OCTAVE], self.exponent - self.scales.astype(np.int32) // _OCTAVE
        )
        return found

    def check(self, name: str) -> None:
        """Decode the stream, a little at a time; errors as in `delta`."""
        for _ in decode_runs(self.stream, self.tables, name):
            pass


def as_codes(data: bytes) -> Codes:
    """Return bytes as a tensor's codes."""
    return {PART: torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())}


def head_bytes(runs: int) -> int:
    """Return what is stored besides tables, scales and the stream."""
    return len(number(2 * runs + 1)) + 2


def signs_bytes(count: int) -> int:
    """Return the bytes of one run of as many signs, at most."""
    return _run_bytes(np.array([0, count]))


def one_entry_bytes(count: int) -> int:
    """Return the bytes of one run of as many symbols of which one is not zero, at most."""
    return _run_bytes(np.array([count - 1, 1]))


def _run_bytes(counts: Int64Array) -> int:
    count = int(counts.sum())
    table = Table.shorter(counts, count)
    return head_bytes(1) + len(table.packed(count)) + 1 + int(table.bits_of(counts) / 8) + 1


def read_stored(codes: Codes, name: str, shape: tuple[int, int]) -> Stored | None:
    """Return what codes say before their stream is decoded; None where nothing is kept.

    Raises:
        CorruptArtifactError: they are of no matrix of this shape.
    """
    is_old = OLD_PART in codes
    data = read_part(codes, name, OLD_PART if is_old else PART, torch.uint8, None).numpy().tobytes()
    if data == NOTHING:
        return None
    reader = ByteReader(data, name)
    if is_old and (length := reader.number()) != reader.left:
        raise CorruptArtifactError(f"The codes of {name!r} are {reader.left:,} bytes long, but say {length:,}.")
    runs, kind = divmod(reader.number(), 2)
    if not 1 <= runs <= (1 if kind == ENTRIES else _MOST_RUNS):
        raise CorruptArtifactError(f"The codes of {name!r} have {runs:,} tables.")
    if not is_old:
        check, rest = reader.take(1), reader.rest()
        if check != _check(shape, rest):
            raise CorruptArtifactError(f"The codes of {name!r} are damaged, or not of a {list(shape)} matrix.")
        reader = ByteReader(rest, name)
    (stored,), unit = reader.take(1), _unit(kind, shape)
    tables = tuple(reader.exact_table() if is_old else reader.table(unit) for _ in range(runs))
    count = _scales_of(tables, kind, name, shape)
    require_proportion(codes, name, sum(table.symbols for table in tables))
    scales = np.frombuffer(reader.take(count), dtype=np.uint8)
    return Stored(kind, shape, stored - _OFFSET, tables, scales, reader.rest())


def _unit(kind: int, shape: tuple[int, int]) -> int:
    """Return the symbols of a vector pair, or of all entries."""
    return math.prod(shape) if kind == ENTRIES else sum(shape)


def _check(shape: tuple[int, int], data: bytes) -> bytes:
    """Return a byte by which damage, or a matrix of another shape, is noticed."""
    return bytes([zlib.crc32(f"{shape[0]},{shape[1]},".encode() + data) & 255])


def _scales_of(tables: Sequence[Table], kind: int, name: str, shape: tuple[int, int]) -> int:
    """Return how many scales go with tables, having checked that they are of a matrix of this shape."""
    counts = [divmod(table.symbols, max(_unit(kind, shape), 1)) for table in tables]
    total = sum(count for count, _ in counts)
    if any(rest for _, rest in counts) or total > (1 if kind == ENTRIES else min(shape)):
        sizes = ", ".join(f"{table.symbols:,}" for table in tables)
        raise CorruptArtifactError(f"The codes of {name!r} have {sizes} symbols, which no {list(shape)} matrix has.")
    return total


def _scale_codes(scales: FloatArray, name: str) -> tuple[int, UInt8Array]:
    """Return the exponent that scales share, and the code of each."""
    exponent = max(-_OFFSET, math.ceil(math.log2(scales.max())))
    if exponent >= _OFFSET:
        raise TensorValueError(
            f"The delta of {name!r} has a scale of {scales.max():g}: none above 2^127 is stored. Method lossless takes "
            "any value."
        )
    codes = np.rint(_OCTAVE * (exponent - np.log2(scales)))
    return exponent, np.clip(codes, 0, 255).astype(np.uint8)
