"""The compressed delta on disk: one safetensors file a block, each tensor with what its decoding needs."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, field_validator

from impart_core.base.errors import CheckpointError, CorruptArtifactError
from impart_core.base.settings import Frozen
from impart_core.checkpoint.header import DTYPES, MOST_DIMENSIONS, TensorInfo, read_header
from impart_core.checkpoint.layout import Role
from impart_core.checkpoint.local import local_file
from impart_core.checkpoint.reader import read_tensor
from impart_core.checkpoint.writer import write_tensors
from impart_core.codec.parts import nbytes

FORMAT_VERSION = 2
_READ = (1, 2)  # in 1 no tensor has an exponent
CODES_FILE = "codes.safetensors"
OMITTED, KEEP, ROWS, VALUE = "omitted", "keep", "rows", "value"
PLANES, DIFFERENCE, SPARSE = "planes", "difference", "sparse"  # bit for bit; see `codec.exact`
EXACT = (PLANES, DIFFERENCE, SPARSE)
_UNCODED = (OMITTED, KEEP, ROWS, VALUE, *EXACT)
ADDED = "added"  # part: rows that the base does not have, as they are
_HEADER_KEY = "impart"
# What reading a hostile header may raise: ValidationError and JSONDecodeError are ValueErrors, and so on.
_NOT_A_BLOCK = (CheckpointError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


class TensorHeader(Frozen):
    """How one tensor of a block is stored.

    Attributes:
        method: a method's name; `keep` (delta at 16 bits); `rows` (its changed rows at 16 bits); `value`
            (stored as it is: not floating, or not in the base); `omitted` (the delta is zero: nothing is stored);
            `planes`, `difference` or `sparse` (bit for bit, see `codec.exact`).
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
        return len(self.shape) == 3 and self.method not in _UNCODED


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
    write_tensors(path, parts, metadata_of({name: item.header for name, item in tensors.items()}))


def metadata_of(headers: Mapping[str, TensorHeader]) -> dict[str, str]:
    """Return the metadata of a block's file from its tensors' headers by name."""
    compact = {name: header.model_dump(mode="json", exclude_defaults=True) for name, header in sorted(headers.items())}
    text = json.dumps({"format": FORMAT_VERSION, "tensors": compact}, separators=(",", ":"), sort_keys=True)
    return {_HEADER_KEY: text}


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
        if self.version not in _READ:
            raise CorruptArtifactError(
                f"{self.path} has format version {self.version}; this program reads {_READ[0]} to {FORMAT_VERSION}. "
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
