"""Decoding a tensor of a block: whatever method coded it, or nothing did."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from impart_core.base.errors import CorruptArtifactError
from impart_core.checkpoint.header import DTYPES
from impart_core.codec.exact import check_exact
from impart_core.codec.format import ADDED, EXACT, KEEP, OMITTED, ROWS, VALUE, BlockFile, TensorHeader
from impart_core.codec.half import decode_half, read_exponent
from impart_core.codec.parts import Codes
from impart_core.codec.rows import decode_rows, read_rows
from impart_core.methods.base import METHODS

_MOST_ENTRIES = 1 << 34  # of a matrix or vector: far above any model's, and 64 GiB once it is decoded
_MOST_MATRICES = 1 << 16  # of a stack: far above the experts of any layer


def decode_delta(
    name: str, header: TensorHeader, codes: Mapping[str, torch.Tensor], *, portable: bool = False
) -> torch.Tensor | None:
    """Return the delta of one tensor, or of one matrix of a stack, float32, or None where it is zero or has none.

    Args:
        name: the tensor's name, or `name[index]` for a matrix.
        header: its header; for a matrix, with the matrix's shape.
        codes: its codes by part. Added rows are no part of the delta. What is stored bit for bit has none without the
            base: see `blocks.rebuild.read_delta`.
        portable: whether it is to be in the same bits on every machine, which takes longer; see `Terms.portable`.

    Raises:
        CorruptArtifactError: the codes do not fit the tensor's shape.
        UnknownNameError: the method is not known to this program.
    """
    with _read_codes(name, header, codes) as (own, shape):
        if header.method in (VALUE, OMITTED, *EXACT):
            return None
        if header.method == KEEP:
            return decode_half(own["delta"], own, name).reshape(shape)
        if header.method == ROWS:
            return decode_rows(own, name, shape)
        rows, columns = shape
        method = METHODS.get(header.method)
        if portable:
            return method.terms(own, name, (rows, columns), header.seed).portable()
        return method.decode(own, name, (rows, columns), header.seed)


def check_delta(name: str, header: TensorHeader, codes: Mapping[str, torch.Tensor]) -> None:
    """Check that a tensor's codes decode, without the memory that its delta takes; arguments and errors as above."""
    with _read_codes(name, header, codes) as (own, shape):
        if header.method in (KEEP, ROWS):
            read_exponent(own, name)
        if header.method in EXACT:
            check_exact(header.method, own, name, shape, DTYPES[header.dtype])
        elif header.method == KEEP:
            own["delta"].reshape(shape)
        elif header.method == ROWS:
            read_rows(own, name, shape)
        elif header.method not in (VALUE, OMITTED):
            rows, columns = shape
            METHODS.get(header.method).check_codes(own, name, (rows, columns), header.seed)


@contextmanager
def _read_codes(
    name: str, header: TensorHeader, codes: Mapping[str, torch.Tensor]
) -> Iterator[tuple[Codes, tuple[int, ...]]]:
    """Give a tensor's own codes and its shape without added rows; what does not fit becomes a sentence."""
    try:
        own = {part: code for part, code in codes.items() if part != ADDED}
        shape = header.shape if header.method == VALUE else delta_shape(header, codes)
        if header.method not in (VALUE, OMITTED) and math.prod(shape) > _MOST_ENTRIES:
            raise ValueError(f"no tensor has the shape {list(shape)}")
        yield own, shape
    except (RuntimeError, ValueError, KeyError, IndexError, TypeError, OverflowError, MemoryError) as error:
        raise CorruptArtifactError(f"The codes of {name!r} do not fit its header: {error}") from error


def delta_shape(header: TensorHeader, codes: Mapping[str, torch.Tensor]) -> tuple[int, ...]:
    """Return the shape without the added rows.

    Raises:
        ValueError: the added rows are not of this tensor.
    """
    if ADDED not in codes:
        return header.shape
    added = codes[ADDED]
    shape = (header.shape[0] - added.shape[0], *header.shape[1:])
    if shape[0] < 0 or added.shape[1:] != header.shape[1:] or added.dtype != DTYPES[header.dtype]:
        raise ValueError(f"it has {list(added.shape)} added rows of {added.dtype}")
    return shape


def decode_stack(file: BlockFile, name: str, *, portable: bool = False) -> Iterator[torch.Tensor | None]:
    """Give the delta of each matrix of a stack in turn, float32, or None where it is zero; else as `decode_delta`."""
    for one, matrix, codes in _matrices(file, name):
        yield decode_delta(one, matrix, codes, portable=portable) if codes else None


def check_stack(file: BlockFile, name: str) -> None:
    """Check that the codes of each matrix of a stack decode, as `check_delta` does; errors as for one."""
    for one, matrix, codes in _matrices(file, name):
        if codes:
            check_delta(one, matrix, codes)


def _matrices(file: BlockFile, name: str) -> Iterator[tuple[str, TensorHeader, Codes]]:
    """Give each matrix of a stack in turn: its name, header and codes."""
    header = file.headers[name]
    if header.shape[0] > _MOST_MATRICES:
        raise CorruptArtifactError(f"{file.path} says that {name!r} is a stack of {header.shape[0]:,} matrices.")
    matrix, read = header.model_copy(update={"shape": header.shape[1:]}), 0
    coded = {part.partition(".")[0] for part in header.parts}
    for index in range(header.shape[0]):
        codes = file.codes(name, f"{index}.") if str(index) in coded else {}
        read += len(codes)
        yield f"{name}[{index}]", matrix, codes
    if read != len(header.parts):
        raise CorruptArtifactError(f"{file.path} has codes of {name!r} that belong to none of its matrices.")
