"""Entropy-coded symbols of a matrix as stored bytes: vectors or entries, their tables and scales (docs/format.md).

A scale is s = 2^(e − c/16) with an exponent e that all share and a code c of one byte: to 2.2 % at most, which is as
good as exact beside the noise of symbols. Vectors are stored as integers; what they are to be multiplied by, and the
gain of the pair, is in its scale.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from impart_core.base.errors import CorruptArtifactError, TensorValueError
from impart_core.codec.bitpack import UInt8Array
from impart_core.codec.entropy import ByteReader, Int32Array, Table, decode_runs, encode_runs, number, stream_bytes
from impart_core.codec.parts import Codes, read_part, require_proportion
from impart_core.quantization.rate_distortion import Float32Array, FloatArray

PART = "codes"
NOTHING = b"\0"  # codes of which nothing follows: nothing is kept
Kind = Literal[0, 1]
FACTORS: Kind = 0
ENTRIES: Kind = 1
SMALLEST_RATIO = 2.0**-14  # of scales to the largest: what is far below it has no code
_MOST_RUNS = 64
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
        exponent: of the scales, -128 to 127.
        tables: of each run: the vectors with the same step, u_k and v_k of each after the other; or all entries.
        scales: the code of each vector pair in the order of the runs, or one, uint8.
        stream: the symbols.
    """

    kind: int
    exponent: int
    tables: tuple[Table, ...]
    scales: UInt8Array
    stream: bytes

    @classmethod
    def of(cls, kind: Kind, runs: Sequence[Int32Array], scales: FloatArray, name: str) -> "Stored":
        """Encode runs of symbols, each (N,), with their scales, (K,), more than 0.

        Raises:
            TensorValueError: a scale is above what float32 holds.
        """
        tables = tuple(Table.of(run) for run in runs)
        exponent, codes = _scale_codes(scales, name)
        return cls(kind, exponent, tables, codes, encode_runs(runs, tables))

    def packed(self) -> Codes:
        """Return them as they are stored."""
        tables = b"".join(table.packed() for table in self.tables)
        head = number(2 * len(self.tables) + self.kind) + bytes([self.exponent + _OFFSET])
        found = head + tables + self.scales.tobytes() + self.stream
        return as_codes(number(len(found)) + found)

    def delta(self, name: str, shape: tuple[int, int]) -> torch.Tensor:
        """Return the matrix, float32, (m, n); errors as in `factors`."""
        right, left = self.factors(name, shape)
        return right if left is None else left.T @ right

    def factors(self, name: str, shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return v̂, (K, n), and s·û, (K, m); or the matrix, (m, n), and None where entries are stored; float32.

        Raises:
            CorruptArtifactError: the stream is not of the tables.
        """
        symbols = np.empty(sum(table.symbols for table in self.tables), dtype=np.float32)
        at = 0
        for some in decode_runs(self.stream, self.tables, name):
            symbols[at : at + len(some)] = some
            at += len(some)
        scales = torch.from_numpy(self._scales())
        if self.kind == ENTRIES:
            return torch.from_numpy(symbols).reshape(shape).mul_(scales), None
        pairs = torch.from_numpy(symbols).reshape(len(scales), sum(shape))
        return pairs[:, shape[0] :], pairs[:, : shape[0]] * scales[:, None]

    def scaled(self, gains: FloatArray, name: str) -> "Stored":
        """Return the same with scales times gains, (K,), more than 0; errors as in `of`."""
        exponent, codes = _scale_codes(self._scales().astype(np.float64) * gains, name)
        return replace(self, exponent=exponent, scales=codes)

    def _scales(self) -> Float32Array:
        """Return the scales, float32, (K,)."""
        octaves = self.scales.astype(np.int32) // _OCTAVE
        return np.asarray(np.ldexp(_ROOTS[self.scales % _OCTAVE], self.exponent - octaves), dtype=np.float32)

    def check(self, name: str) -> None:
        """Decode the stream, a little at a time; errors as in `delta`."""
        for _ in decode_runs(self.stream, self.tables, name):
            pass


def as_codes(data: bytes) -> Codes:
    """Return bytes as a tensor's codes."""
    return {PART: torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())}


def head_bytes(most: int, runs: int) -> int:
    """Return what is stored of at most so many bytes besides tables, scales and the stream, at most."""
    return len(number(most)) + len(number(2 * runs + 1)) + 1


def signs_bytes(count: int) -> int:
    """Return the bytes of one run of as many signs, at most."""
    return _run_bytes(Table(np.array([0, count])))


def one_entry_bytes(count: int) -> int:
    """Return the bytes of one run of as many symbols of which one is not zero, at most."""
    return _run_bytes(Table(np.array([count - 1, 1])))


def _run_bytes(table: Table) -> int:
    rest = 2 + len(table.packed()) + 1 + stream_bytes([table])
    return len(number(rest)) + rest


def read_stored(codes: Codes, name: str, shape: tuple[int, int]) -> Stored | None:
    """Return what codes say before their stream is decoded; None where nothing is kept.

    Raises:
        CorruptArtifactError: they are of no matrix of this shape.
    """
    data = read_part(codes, name, PART, torch.uint8, None).numpy().tobytes()
    reader = ByteReader(data, name)
    length = reader.number()
    if data == NOTHING:
        return None
    if length != reader.left:
        raise CorruptArtifactError(f"The codes of {name!r} are {reader.left:,} bytes long, but say {length:,}.")
    runs, kind = divmod(reader.number(), 2)
    if not 1 <= runs <= (1 if kind == ENTRIES else _MOST_RUNS):
        raise CorruptArtifactError(f"The codes of {name!r} have {runs:,} tables.")
    (stored,) = reader.take(1)
    tables = tuple(reader.table() for _ in range(runs))
    count = _scales_of(tables, kind, name, shape)
    require_proportion(codes, name, sum(table.symbols for table in tables))
    scales = np.frombuffer(reader.take(count), dtype=np.uint8)
    return Stored(kind, stored - _OFFSET, tables, scales, reader.rest())


def _scales_of(tables: Sequence[Table], kind: int, name: str, shape: tuple[int, int]) -> int:
    """Return how many scales go with tables, having checked that they are of a matrix of this shape."""
    unit = math.prod(shape) if kind == ENTRIES else sum(shape)
    counts = [divmod(table.symbols, max(unit, 1)) for table in tables]
    total = sum(count for count, _ in counts)
    if any(rest for _, rest in counts) or total > (1 if kind == ENTRIES else min(shape)):
        sizes = ", ".join(f"{table.symbols:,}" for table in tables)
        raise CorruptArtifactError(f"The codes of {name!r} have {sizes} symbols, which no {list(shape)} matrix has.")
    return total


def _scale_codes(scales: FloatArray, name: str) -> tuple[int, UInt8Array]:
    """Return the exponent that scales share, and the code of each."""
    exponent = max(-_OFFSET, math.ceil(math.log2(scales.max())))
    if exponent >= _OFFSET:
        raise TensorValueError(f"The delta of {name!r} has a scale of {scales.max():g}, above what float32 holds.")
    codes = np.rint(_OCTAVE * (exponent - np.log2(scales)))
    return exponent, np.clip(codes, 0, 255).astype(np.uint8)


def gained(dot: FloatArray, norm: FloatArray, kept: FloatArray, gain: float) -> FloatArray:
    """Return scales of symbols for what they stand for.

    Args:
        dot: ⟨symbols, exact values⟩.
        norm: ‖symbols‖².
        kept: their squared cosine.
        gain: 0: least squares; 1: unbiased, as if nothing of the direction had been lost; between them a power.
    """
    return dot / norm * kept**-gain
