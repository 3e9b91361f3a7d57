"""The compressed delta on disk: one safetensors file a block, each tensor with what its decoding needs."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, field_validator

from impart_core.base.errors import CheckpointError, CorruptArtifactError
from impart_core.base.settings import Frozen
from impart_core.checkpoint.header import DTYPE_NAMES, DTYPES, MOST_DIMENSIONS, TensorInfo, located, read_header
from impart_core.checkpoint.layout import Role
from impart_core.checkpoint.local import local_file
from impart_core.checkpoint.reader import read_tensor
from impart_core.checkpoint.writer import TensorSpec, header_bytes, tensor_bytes, write_tensors
from impart_core.codec.packed import PACKED_KEY, packed_text, read_packed_text
from impart_core.codec.parts import nbytes
from impart_core.delta.fidelity import Fidelity

FORMAT_VERSION = 2
PACKED_VERSION = 3  # one safetensors entry with all parts, described in few bytes: for methods that need few
_READ = (1, 2, 3)  # in 1 no tensor has an exponent
CODES_FILE = "codes.safetensors"
OMITTED, KEEP, ROWS, VALUE = "omitted", "keep", "rows", "value"
# Bit for bit; see `codec.exact`.
PLANES, DIFFERENCE, SPARSE, RESIDUAL = "planes", "difference", "sparse", "residual"
EXACT = (PLANES, DIFFERENCE, SPARSE, RESIDUAL)
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
            `planes`, `difference`, `sparse` or `residual` (bit for bit, see `codec.exact`).
        role: what the tensor is in the model.
        shape: its shape.
        dtype: the fine-tuned tensor's safetensors dtype name, which reconstruction casts to.
        seed: the masks' seed, where the method has masks.
        parts: names of its codes, stored as `<tensor>:<part>`; those of matrix i of a stack as `<i>.<part>`.
        base: the tensor of the base that it is a delta against, where that has another name.
        over: digest of what a lossy delta rebuilds, where the residual to that is stored.
    """

    method: str
    role: Role
    shape: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], Field(max_length=MOST_DIMENSIONS)]
    dtype: str
    seed: int = 0
    parts: tuple[str, ...] = ()
    base: str | None = None
    over: str | None = None

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
    """One tensor's header and codes (CPU tensors by part), and what these keep of it, matrix by matrix, if measured."""

    header: TensorHeader
    codes: dict[str, torch.Tensor]
    fidelity: tuple[Fidelity, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of the codes."""
        return nbytes(self.codes)


def write_block(path: Path, tensors: Mapping[str, EncodedTensor], version: int = FORMAT_VERSION) -> None:
    """Write a block's codes and headers into one safetensors file; equal blocks give equal bytes.

    Args:
        path: the file.
        tensors: headers and codes by name.
        version: `FORMAT_VERSION` or `PACKED_VERSION`.
    """
    if version == PACKED_VERSION:
        data = np.frombuffer(_packed(tensors), dtype=np.uint8).copy()
        return write_tensors(path, {PACKED_KEY: torch.from_numpy(data)})
    parts = {f"{name}:{part}": code for name, item in tensors.items() for part, code in item.codes.items()}
    return write_tensors(path, parts, metadata_of({name: item.header for name, item in tensors.items()}))


def packed_overhead(tensors: Mapping[str, EncodedTensor]) -> int:
    """Return the bytes of a file of `PACKED_VERSION` besides its tensors' codes."""
    size = len(_packed_header(tensors))
    whole = TensorSpec(PACKED_KEY, "U8", (size + sum(item.nbytes for item in tensors.values()),))
    return len(header_bytes([whole], {})) + size


def _packed(tensors: Mapping[str, EncodedTensor]) -> bytes:
    codes = (item.codes[part].contiguous() for _, item in sorted(tensors.items()) for part in sorted(item.codes))
    return _packed_header(tensors) + b"".join(bytes(tensor_bytes(code)) for code in codes)


def _packed_header(tensors: Mapping[str, EncodedTensor]) -> bytes:
    described = {}
    for name, item in tensors.items():
        parts = {part: [DTYPE_NAMES[code.dtype], list(code.shape)] for part, code in item.codes.items()}
        described[name] = {**item.header.model_dump(mode="json", exclude_defaults=True), "parts": parts}
    return packed_text({"format": PACKED_VERSION, "tensors": described})


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
            if set(self._infos) == {PACKED_KEY} and not metadata:
                described = self._unpack(self._infos[PACKED_KEY])
            else:
                described = json.loads(metadata[_HEADER_KEY])
                self._require_version(int(described["format"]), packed=False)
            self.version = int(described["format"])
            self.headers = {
                str(name): TensorHeader.model_validate(header) for name, header in described["tensors"].items()
            }
        except _NOT_A_BLOCK as error:
            raise CorruptArtifactError(f"{path} is not a block of a compressed delta: {error}") from error
        expected = {f"{name}:{part}" for name, header in self.headers.items() for part in header.parts}
        if expected != set(self._infos):
            raise CorruptArtifactError(f"{path} does not hold the codes that its header lists.")

    def _unpack(self, record: TensorInfo) -> dict[str, Any]:
        """Find the parts in the record of a packed file; return its description as a file of format 2 has it."""
        described, at = read_packed_text(bytes(record.file.read(record.start, record.end)))
        self._require_version(int(described["format"]), packed=True)
        entries, offset, tensors = {}, 0, {}
        for name, header in sorted(described["tensors"].items()):
            for part, (dtype, shape) in sorted(header["parts"].items()):
                end = offset + math.prod(shape) * DTYPES[dtype].itemsize
                entries[f"{name}:{part}"] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
                offset = end
            tensors[name] = {**header, "parts": sorted(header["parts"])}
        self._infos = located(record.file, entries, (record.start + at, record.end))
        return {**described, "tensors": tensors}

    def _require_version(self, version: int, *, packed: bool) -> None:
        if version not in _READ or packed != (version == PACKED_VERSION):
            raise CorruptArtifactError(
                f"{self.path} has format version {version}; this program reads {_READ[0]} to {_READ[-1]}. "
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
