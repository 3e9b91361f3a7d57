"""Decoding a tensor of a block: whatever method coded it, or nothing did."""

import math
from collections.abc import Iterator, Mapping

import torch

from impart_core.base.errors import CorruptArtifactError
from impart_core.checkpoint.header import DTYPES
from impart_core.codec.format import ADDED, KEEP, OMITTED, ROWS, VALUE, BlockFile, TensorHeader
from impart_core.codec.rows import decode_rows
from impart_core.methods.base import METHODS

_MOST_ENTRIES = 1 << 34  # of a matrix or vector: far above any model's, and 64 GiB once it is decoded
_MOST_MATRICES = 1 << 16  # of a stack: far above the experts of any layer


def decode_delta(name: str, header: TensorHeader, codes: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """Return the delta of one tensor, or of one matrix of a stack, float32, or None where it is zero or has none.

    Args:
        name: the tensor's name, or `name[index]` for a matrix.
        header: its header; for a matrix, with the matrix's shape.
        codes: its codes by part. Added rows are no part of the delta.

    Raises:
        CorruptArtifactError: the codes do not fit the tensor's shape.
        UnknownNameError: the method is not known to this program.
    """
    if header.method == VALUE:
        return None
    own = {part: code for part, code in codes.items() if part != ADDED}
    try:
        shape = delta_shape(header, codes)
        if header.method == OMITTED:
            return None
        if math.prod(shape) > _MOST_ENTRIES:
            raise ValueError(f"no tensor has the shape {list(shape)}")
        if header.method == KEEP:
            return own["delta"].float().reshape(shape)
        if header.method == ROWS:
            return decode_rows(own, name, shape)
        rows, columns = shape
        return METHODS.get(header.method).decode(own, name, (rows, columns), header.seed)
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


def decode_stack(file: BlockFile, name: str) -> Iterator[torch.Tensor | None]:
    """Give the delta of each matrix of a stack in turn, float32, or None where it is zero; errors as for one."""
    header = file.headers[name]
    if header.shape[0] > _MOST_MATRICES:
        raise CorruptArtifactError(f"{file.path} says that {name!r} is a stack of {header.shape[0]:,} matrices.")
    matrix, read = header.model_copy(update={"shape": header.shape[1:]}), 0
    coded = {part.partition(".")[0] for part in header.parts}
    for index in range(header.shape[0]):
        codes = file.codes(name, f"{index}.") if str(index) in coded else {}
        read += len(codes)
        yield decode_delta(f"{name}[{index}]", matrix, codes) if codes else None
    if read != len(header.parts):
        raise CorruptArtifactError(f"{file.path} has codes of {name!r} that belong to none of its matrices.")
