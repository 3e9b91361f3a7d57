"""The compressed delta on disk: one safetensors file a block, each tensor with what its decoding needs."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, field_validator

from impart_core.checkpoint.header import DTYPES, MOST_DIMENSIONS, TensorInfo, read_header
from impart_core.checkpoint.layout import Role
from impart_core.checkpoint.local import local_file
from impart_core.checkpoint.reader import read_tensor
from impart_core.checkpoint.writer import spec_of, write_safetensors
from impart_core.codec.parts import nbytes
from impart_core.codec.rows import decode_rows
from impart_core.config import Frozen
from impart_core.errors import CheckpointError, CorruptArtifactError
from impart_core.sparsify import SPARSIFIERS

FORMAT_VERSION = 1
CODES_FILE = "codes.safetensors"
OMITTED, KEEP, ROWS, VALUE = "omitted", "keep", "rows", "value"
ADDED = "added"  # part: rows that the base does not have, as they are
_HEADER_KEY = "impart"
_MOST_ENTRIES = 1 << 34  # of a matrix or vector: far above any model's, and 64 GiB once it is decoded
_MOST_MATRICES = 1 << 16  # of a stack: far above the experts of any layer
# What reading a hostile header may raise: ValidationError and JSONDecodeError are ValueErrors, and so on.
_NOT_A_BLOCK = (CheckpointError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


class TensorHeader(Frozen):
    """How one tensor of a block is stored.

    Attributes:
        method: a sparsifier's name; `keep` (delta at 16 bits); `rows` (its changed rows at 16 bits); `value`
            (stored as it is: not floating, or not in the base); `omitted` (the delta is zero: nothing is stored).
        role: what the tensor is in the model.
        shape: its shape.
        dtype: the fine-tuned tensor's safetensors dtype name, which reconstruction casts to.
        seed: the masks' seed, where the method has masks.
        parts: names of its codes, stored as `<tensor>:<part>`; those of matrix i of a stack as `<i>.<part>`.
        base: the tensor of the base that it is a delta against, where that has another name.
    """

    method: str
    role: Role
    shape: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], Field(max_length=MOST_DIMENSIONS)]
    dtype: str
    seed: int = 0
    parts: tuple[str, ...] = ()
    base: str | None = None

    @field_validator("dtype")
    @classmethod
    def _dtype_is_known(cls, dtype: str) -> str:
        if dtype not in DTYPES:
            raise ValueError(f"{dtype!r:.50} is not a dtype")
        return dtype

    @property
    def is_stack(self) -> bool:
        """Whether it is a stack of matrices, each coded on its own."""
        return len(self.shape) == 3 and self.method in SPARSIFIERS


@dataclass(frozen=True)
class EncodedTensor:
    """One tensor's header and codes (CPU tensors by part)."""

    header: TensorHeader
    codes: dict[str, torch.Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of the codes."""
        return nbytes(self.codes)


def write_block(path: Path, tensors: Mapping[str, EncodedTensor]) -> None:
    """Write a block's codes and headers into one safetensors file; equal blocks give equal bytes."""
    parts = {f"{name}:{part}": code for name, item in tensors.items() for part, code in item.codes.items()}
    headers = {name: _compact(item.header) for name, item in sorted(tensors.items())}
    text = json.dumps({"format": FORMAT_VERSION, "tensors": headers}, separators=(",", ":"), sort_keys=True)
    specs = [spec_of(name, code) for name, code in parts.items()]
    write_safetensors(path, specs, parts.__getitem__, {_HEADER_KEY: text})


class BlockFile:
    """A block's file, opened from its header; codes are read tensor by tensor."""

    def __init__(self, path: Path) -> None:
        """Open a block's file.

        Raises:
            CorruptArtifactError: it is not a block's file, or its header does not fit its codes.
        """
        self.path = path
        try:
            self._infos, metadata = read_header(local_file(path))
            described: dict[str, Any] = json.loads(metadata[_HEADER_KEY])
            self.version = int(described["format"])
            self._require_version()
            self.headers = {
                str(name): TensorHeader.model_validate(header) for name, header in described["tensors"].items()
            }
        except _NOT_A_BLOCK as error:
            raise CorruptArtifactError(f"{path} is not a block of a compressed delta: {error}") from error
        expected = {f"{name}:{part}" for name, header in self.headers.items() for part in header.parts}
        if expected != set(self._infos):
            raise CorruptArtifactError(f"{path} does not hold the codes that its header lists.")

    def _require_version(self) -> None:
        if self.version != FORMAT_VERSION:
            raise CorruptArtifactError(
                f"{self.path} has format version {self.version}; this program reads {FORMAT_VERSION}. "
                "Use the version of impart that wrote it."
            )

    def infos(self, name: str) -> dict[str, TensorInfo]:
        """Return where each part of a tensor's codes lies."""
        return {part: self._infos[f"{name}:{part}"] for part in self.headers[name].parts}

    def code_bytes(self, names: Iterable[str]) -> int:
        """Return the bytes of the codes of these tensors."""
        return sum(info.nbytes for name in names for info in self.infos(name).values())

    def codes(self, name: str, prefix: str = "") -> dict[str, torch.Tensor]:
        """Read one tensor's codes, or those parts whose names begin with a prefix, which is taken off."""
        infos = self.infos(name)
        return {part.removeprefix(prefix): read_tensor(infos[part]) for part in infos if part.startswith(prefix)}


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
        return SPARSIFIERS.get(header.method).decode(own, name, (rows, columns), header.seed)
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


def _compact(header: TensorHeader) -> dict[str, Any]:
    return header.model_dump(mode="json", exclude_defaults=True)
