"""Quantised matrices as stored parts: codes of exactly their bits, scales, zero points, and how these are laid out.

Each range of rows of each matrix is a stream of codes of its kept entries, in scan order. The parts:

- `layout` uint16: the group size (0: a whole range), whether streams may be compressed, bits and rows of each range;
- `scales` float16, (groups,);
- `zeros` uint8: for each stream its zero points, packed at its bits and filled up to a byte;
- `forms` uint8 and `lengths` uint32, (streams,), where streams may be compressed: the form of each and its bytes;
- `packed` uint32 (1,), likewise: the bytes of all streams if none were compressed;
- `codes` uint8: the streams. At 16 bits a code is the float16 itself.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from impart_core.base.errors import CorruptArtifactError
from impart_core.codec.bitpack import UInt8Array, UIntArray, pack, packed_bytes, unpack
from impart_core.codec.lossless import BYTES_SQUEEZED, PACKED, SQUEEZED, expanding, squeeze
from impart_core.codec.parts import Codes, read_part
from impart_core.quantization.grid import HALF, Bits, RowRange
from impart_core.quantization.groups import Groups, group_count
from impart_core.quantization.ladder import WIDTHS

STREAM_PARTS = ("layout", "scales", "zeros", "forms", "lengths", "packed", "codes")
LARGEST_GROUP = MOST_ROWS = (1 << 16) - 1  # of a group, and of a range, as the layout stores them
MOST_SAVED = 64  # no stream is stored in less than this part of its packed size, so that little cannot claim much


@dataclass(frozen=True)
class QuantizedMatrix:
    """A matrix as codes.

    Attributes:
        groups: its mask, bits and groups.
        scales: float16, (groups,).
        zeros: uint8, (groups,).
        codes: float32, (rows, columns); values where a range has 16 bits. Those of masked entries have no meaning.
    """

    groups: Groups
    scales: torch.Tensor
    zeros: torch.Tensor
    codes: torch.Tensor

    def values(self) -> torch.Tensor:
        """Return what the codes stand for, float32, (rows, columns); masked entries are exactly zero."""
        found = self.groups.entries(self.scales, self.zeros).values(self.codes)
        return torch.where(self.groups.mask, found, 0.0)


def layout_bytes(ranges: int, matrices: int, lossless: bool) -> int:
    """Return the bytes of what describes the streams of matrices with so many ranges each."""
    return 2 * (2 + 2 * ranges) + (5 * ranges * matrices + 4 if lossless else 0)


def pack_matrices(matrices: Sequence[QuantizedMatrix], lossless: bool) -> Codes:
    """Return the parts of one or more matrices with the same ranges and group size.

    Args:
        matrices: one or more.
        lossless: whether streams are compressed where that makes them smaller.
    """
    groups = matrices[0].groups
    layout = [groups.size or 0, int(lossless)]
    layout += [side for span in groups.ranges for side in (span.bits, span.stop - span.start)]
    streams = [stream for matrix in matrices for stream in _streams(matrix)]
    packed = [_smallest(stream) if lossless else (PACKED, stream.packed()) for stream in streams]
    parts: dict[str, npt.NDArray[Any]] = {
        "layout": np.array(layout, dtype=np.uint16),
        "zeros": np.frombuffer(b"".join(pack(s.zeros, s.bits).tobytes() for s in streams), dtype=np.uint8),
        "codes": np.frombuffer(b"".join(data for _, data in packed), dtype=np.uint8),
    }
    if lossless:
        parts["forms"] = np.array([form for form, _ in packed], dtype=np.uint8)
        parts["lengths"] = np.array([len(data) for _, data in packed], dtype=np.uint32)
        parts["packed"] = np.array([sum(packed_bytes(len(s.codes), s.bits) for s in streams)], dtype=np.uint32)
    scales = torch.cat([matrix.scales.cpu() for matrix in matrices])
    return {"scales": scales, **{part: torch.from_numpy(data.copy()) for part, data in parts.items()}}


def unpack_matrices(codes: Codes, name: str, masks: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return what the parts stand for, float32, each like its mask.

    Args:
        codes: the parts.
        name: the tensor, for errors.
        masks: bool, (rows, columns), one for each matrix; all have the same rows.

    Raises:
        CorruptArtifactError: the parts are not of such matrices.
    """
    layout = read_layout(codes, name, len(masks[0]))
    matrices = [Groups(mask, layout.ranges, layout.size) for mask in masks]
    streams = _read_streams(codes, name, layout, [kept for each in matrices for kept in each.kept])
    found, first = [], 0
    for number, each in enumerate(matrices):
        own = streams.of[number * len(layout.ranges) : (number + 1) * len(layout.ranges)]
        zeros = torch.from_numpy(np.concatenate([np.zeros(0, dtype=np.uint8), *(stream.points() for stream in own)]))
        count = sum(each.counts)
        matrix = torch.zeros(each.mask.shape)
        for stream, span in zip(own, each.ranges, strict=True):
            read = torch.from_numpy(stream.read(name))
            values = read.view(torch.float16) if span.bits == HALF else read
            matrix[span.rows][each.mask[span.rows]] = values.float()
        grid = each.entries(streams.scales[first : first + count], zeros)
        if layout.lossless:
            matrix = torch.where(grid.half, matrix, torch.remainder(matrix + grid.zeros, grid.levels + 1))
        found.append(torch.where(each.mask, grid.values(matrix), 0.0))
        first += count
    return found


def check_matrices(codes: Codes, name: str, rows: int, kept: Sequence[Callable[[RowRange], int]]) -> None:
    """Check that the parts can be unpacked, in no more memory than a small multiple of what they store.

    Args:
        codes: the parts.
        name: the tensor, for errors.
        rows: of each matrix.
        kept: for each matrix, what tells how many entries of given rows its mask keeps.

    Raises:
        CorruptArtifactError: the parts are not of such matrices.
    """
    layout = read_layout(codes, name, rows)
    for stream in _read_streams(codes, name, layout, [count(span) for count in kept for span in layout.ranges]).of:
        for _ in stream.pieces(name):
            pass


@dataclass(frozen=True)
class Layout:
    """How streams are laid out: bits of rows, group size, and whether they may be compressed."""

    ranges: tuple[RowRange, ...]
    size: int | None
    lossless: bool


def require_plausible(codes: Codes, name: str, entries: float) -> None:
    """Refuse parts that cannot be of so many entries, before memory is taken for these.

    Args:
        codes: the parts.
        name: the tensor, for the error.
        entries: how many are kept, at a guess.

    Raises:
        CorruptArtifactError: even at the fewest bits and compressed as far as may be they are half as many.
    """
    stored = read_part(codes, name, "codes", torch.uint8, None).numel()
    if entries * min(WIDTHS) / 8 > 2 * MOST_SAVED * (stored + 64):
        raise CorruptArtifactError(
            f"The codes of {name!r} are {stored:,} bytes, far too few for {entries:,.0f} entries."
        )


def read_layout(codes: Codes, name: str, rows: int) -> Layout:
    """Return how parts were laid out.

    Raises:
        CorruptArtifactError: it is no layout of so many rows.
    """
    layout = read_part(codes, name, "layout", torch.uint16, None).tolist()
    if len(layout) < 2 or len(layout) % 2:
        raise CorruptArtifactError(
            f"The codes of {name!r} have a layout of {len(layout)} numbers; expected two, and two for each range."
        )
    size, lossless, *sides = layout
    ranges, start = [], 0
    for bits, count in zip(sides[::2], sides[1::2], strict=True):
        if bits not in WIDTHS or not count:
            raise CorruptArtifactError(f"The codes of {name!r} have a range of {count} rows of {bits} bits.")
        width: Bits = bits
        ranges.append(RowRange(start, start + count, width))
        start += count
    if start != rows or lossless > 1:
        raise CorruptArtifactError(f"The codes of {name!r} are laid out for {start} rows, but it has {rows}.")
    return Layout(tuple(ranges), size or None, bool(lossless))


@dataclass(frozen=True)
class Description:
    """What the parts of quantised codes say of themselves, those of a stack taken together.

    Attributes:
        bits: rows at each width, as `8x2,3x32,2x210`; of a stack those of its first matrix.
        size: the group size; None: a range has one group.
        packed: bytes of the codes without the lossless stage.
    """

    bits: str
    size: int | None
    packed: int


def describe_streams(codes: Codes) -> Description | None:
    """Return what quantised codes say of themselves; None where these are none."""
    layouts = [part for part in codes if part.rpartition(".")[2] == "layout"]
    if not layouts:
        return None
    size, _, *sides = codes[layouts[0]].tolist()
    prefixes = [part.removesuffix("layout") for part in layouts]
    sizes = [codes.get(f"{prefix}packed") for prefix in prefixes]
    return Description(
        bits=",".join(f"{bits}x{rows}" for bits, rows in zip(sides[::2], sides[1::2], strict=True)),
        size=size or None,
        packed=sum(
            codes[f"{prefix}codes"].numel() if packed is None else int(packed.item())
            for prefix, packed in zip(prefixes, sizes, strict=True)
        ),
    )


@dataclass(frozen=True)
class _Stream:
    """One range's codes, (kept,), uint8 or, at 16 bits, uint16; and its zero points, uint8, (groups,)."""

    bits: Bits
    codes: UIntArray
    zeros: UInt8Array
    size: int | None

    def packed(self) -> bytes:
        return pack(self.codes, self.bits).tobytes()

    def centred(self) -> "_Stream":
        """Return the stream with codes counted from their zero points, modulo their number."""
        if self.bits == HALF or not len(self.codes):
            return self
        zeros = self.zeros[np.arange(len(self.codes)) // (self.size or len(self.codes))]
        codes = (self.codes - zeros) & ((1 << self.bits) - 1)
        return _Stream(self.bits, codes.astype(np.uint8), self.zeros, self.size)


def _streams(matrix: QuantizedMatrix) -> Iterator[_Stream]:
    groups, zeros, first = matrix.groups, matrix.zeros.cpu().numpy(), 0
    for span, count in zip(groups.ranges, groups.counts, strict=True):
        kept = matrix.codes[span.rows][groups.mask[span.rows]].cpu()
        codes = kept.half().view(torch.uint16).numpy() if span.bits == HALF else kept.to(torch.uint8).numpy()
        yield _Stream(span.bits, codes, zeros[first : first + count], groups.size)
        first += count


def _smallest(stream: _Stream) -> tuple[int, bytes]:
    centred = stream.centred()
    forms = [(PACKED, centred.packed())]
    forms.append((SQUEEZED, squeeze(forms[0][1])))
    if stream.bits in (3, 4):  # else whole codes end on bytes, several of which are coded better together
        forms.append((BYTES_SQUEEZED, squeeze(centred.codes.tobytes())))
    within = [form for form in forms if len(form[1]) * MOST_SAVED >= len(forms[0][1])]
    return min(within, key=lambda form: len(form[1]))


@dataclass(frozen=True, slots=True)
class _Stored:
    """A range's codes as they are stored, of which nothing but lengths has been read.

    Attributes:
        bits: of each code.
        kept: how many codes.
        groups: how many zero points.
        zeros: these, packed.
        form: see `codec.lossless`.
        data: the codes in that form.
    """

    bits: Bits
    kept: int
    groups: int
    zeros: UInt8Array
    form: int
    data: UInt8Array

    def points(self) -> UInt8Array:
        """Return the zero points, uint8, (groups,)."""
        return unpack(self.zeros, self.bits, self.groups).astype(np.uint8)

    def pieces(self, name: str) -> Iterator[UInt8Array]:
        """Yield the codes, packed or a byte each as their form has it, a little at a time; errors as in `read`."""
        if self.form == PACKED:
            yield self.data
            return
        size = self.kept if self.form == BYTES_SQUEEZED else packed_bytes(self.kept, self.bits)
        for data in expanding(self.data.tobytes(), size, name):
            piece = np.frombuffer(data, dtype=np.uint8)
            if self.form == BYTES_SQUEEZED and (self.bits == HALF or (len(piece) and int(piece.max()) >> self.bits)):
                raise CorruptArtifactError(f"The codes of {name!r} have one that does not fit {self.bits} bits.")
            yield piece

    def read(self, name: str) -> UIntArray:
        """Return the codes, (kept,).

        Raises:
            CorruptArtifactError: the data is not of so many codes.
        """
        codes = np.concatenate([np.zeros(0, dtype=np.uint8), *self.pieces(name)])
        return codes if self.form == BYTES_SQUEEZED else unpack(codes, self.bits, self.kept)


@dataclass(frozen=True)
class _StoredStreams:
    """The streams of all matrices, range after range, and the scales of all groups, float16."""

    of: tuple[_Stored, ...]
    scales: torch.Tensor


def _read_streams(codes: Codes, name: str, layout: Layout, kept: Sequence[int]) -> _StoredStreams:
    """Return where streams of so many kept entries lie in the parts; all lengths that the parts say are checked."""
    ranges = [layout.ranges[i % len(layout.ranges)] for i in range(len(kept))]
    counts = [group_count(own, span, layout.size) for own, span in zip(kept, ranges, strict=True)]
    scales = read_part(codes, name, "scales", torch.float16, sum(counts))
    if not bool(torch.isfinite(scales).all()):
        raise CorruptArtifactError(f"The codes of {name!r} have a scale that is not finite.")
    zeros = _cut(codes, name, "zeros", [packed_bytes(n, span.bits) for n, span in zip(counts, ranges, strict=True)])
    packed = [packed_bytes(own, span.bits) for own, span in zip(kept, ranges, strict=True)]
    if layout.lossless and read_part(codes, name, "packed", torch.uint32, 1).tolist() != [sum(packed)]:
        raise CorruptArtifactError(f"The codes of {name!r} are not of the size that they say.")
    forms, lengths = _forms(codes, name, packed) if layout.lossless else ([PACKED] * len(kept), packed)
    data = _cut(codes, name, "codes", lengths)
    columns = zip(ranges, kept, counts, zeros, forms, data, strict=True)
    return _StoredStreams(tuple(_Stored(span.bits, *rest) for span, *rest in columns), scales)


def _forms(codes: Codes, name: str, packed: Sequence[int]) -> tuple[list[int], list[int]]:
    forms = read_part(codes, name, "forms", torch.uint8, len(packed)).tolist()
    lengths = read_part(codes, name, "lengths", torch.uint32, len(packed)).tolist()
    for form, length, size in zip(forms, lengths, packed, strict=True):
        fits = length == size if form == PACKED else length <= size <= length * MOST_SAVED
        if form not in (PACKED, SQUEEZED, BYTES_SQUEEZED) or not fits:
            raise CorruptArtifactError(f"The codes of {name!r} have a stream of form {form} and {length:,} bytes.")
    return forms, lengths


def _cut(codes: Codes, name: str, part: str, lengths: Sequence[int]) -> list[UInt8Array]:
    """Return the pieces of a part, which must be as long as all of them."""
    data = read_part(codes, name, part, torch.uint8, sum(lengths)).numpy()
    ends = np.cumsum(lengths, dtype=np.int64)
    return [data[end - length : end] for end, length in zip(ends, lengths, strict=True)]
