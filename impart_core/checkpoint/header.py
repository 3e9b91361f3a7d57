"""The safetensors header: names, dtypes, shapes and byte ranges, read without touching a weight.

Parsed as hostile input: sizes are checked against the file before anything is allocated.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from impart_core.base.errors import CheckpointError
from impart_core.checkpoint.source import SourceFile

_FIRST_RANGE = 64 << 10  # holds the header of most files
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
_NO_STRIDE = 1 << 62  # torch counts the entries between two in 64 bits, and bytes as well
MOST_DIMENSIONS = 64  # the most that torch computes with; a product of millions of sides would take hours

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# Codes of quantised checkpoints, which are read to be decoded and never written; torch knows the last from 2.7 on.
FLOAT8: dict[str, torch.dtype] = {
    name: getattr(torch, dtype)
    for name, dtype in {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu"}.items()
    if hasattr(torch, dtype)
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: its safetensors dtype name, shape, file, and byte range within the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: SourceFile
    start: int
    end: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the stored tensor."""
        return self.end - self.start

    @property
    def torch_dtype(self) -> torch.dtype:
        """The torch dtype of the stored tensor."""
        return (FLOAT8 if self.dtype in FLOAT8 else DTYPES)[self.dtype]

    @property
    def is_floating(self) -> bool:
        """Whether the stored tensor has a floating dtype."""
        return self.torch_dtype.is_floating_point

    def part(self, index: int) -> "TensorInfo":
        """Return where one entry along the first dimension lies, as a tensor of its own, `name[index]`."""
        size = self.nbytes // self.shape[0]
        start = self.start + index * size
        return TensorInfo(f"{self.name}[{index}]", self.dtype, self.shape[1:], self.file, start, start + size)


def read_header(
    file: SourceFile, dtypes: Mapping[str, torch.dtype] = DTYPES
) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Read one safetensors file's header: one small range, and the rest of a header that is longer.

    Args:
        file: the file.
        dtypes: those that its tensors may have, by name.

    Returns:
        The tensors by name, and the file's string metadata.

    Raises:
        CheckpointError: the file is not safetensors, or its header contradicts its size.
    """
    size = file.size
    head = file.read(0, min(size, _FIRST_RANGE))
    length = int.from_bytes(head[:8], "little")
    if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
        raise _not_safetensors(file, "its header is longer than the file")
    text = head[8 : 8 + length]
    if len(text) < length:
        text += file.read(len(head), 8 + length)
    try:
        header = json.loads(text.decode(), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise _not_safetensors(file, "its header is not JSON, or has a key twice") from error
    if not isinstance(header, dict):
        raise _not_safetensors(file, "its header is not a JSON object")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise _not_safetensors(file, "its metadata is not a JSON object")
    if not all(isinstance(value, str) for value in metadata.values()):
        raise _not_safetensors(file, "its metadata holds other values than text")
    return located(file, header, (8 + length, size), dtypes), metadata


def located(
    file: SourceFile, entries: Mapping[str, Any], span: tuple[int, int], dtypes: Mapping[str, torch.dtype] = DTYPES
) -> dict[str, TensorInfo]:
    """Return where tensors lie in a file, from their entries as a safetensors header has them.

    Args:
        file: the file.
        entries: dtype, shape and offsets of each tensor by name.
        span: where in the file the tensors begin and end.
        dtypes: those that they may have, by name.

    Raises:
        CheckpointError: an entry is malformed, or they do not lie end to end in the span.
    """
    tensors = {name: _tensor(file, name, entry, span, dtypes) for name, entry in entries.items()}
    _require_contiguous(file, tensors.values(), *span)
    return tensors


def _tensor(
    file: SourceFile, name: str, entry: Any, span: tuple[int, int], dtypes: Mapping[str, torch.dtype]
) -> TensorInfo:
    """Return a tensor's place from its entry; the span is that of the tensors' bytes in the file."""
    offset, size = span
    try:
        dtype, shape = str(entry["dtype"]), tuple(_whole(n) for n in entry["shape"])
        start, end = (offset + _whole(at) for at in entry["data_offsets"])
        if len(shape) > MOST_DIMENSIONS:
            raise ValueError(f"it has {len(shape)} dimensions")
        if math.prod(max(side, 1) for side in shape) >= _NO_STRIDE:  # also where there are no entries
            raise ValueError("its sides are too long")
    except (KeyError, TypeError, ValueError) as error:
        raise _not_safetensors(file, f"the entry of tensor {name!r:.200} is malformed") from error
    if dtype not in dtypes:
        raise CheckpointError(
            f"Tensor {name!r:.200} in {file} has dtype {dtype!r:.50}, which is not supported. "
            f"Supported: {', '.join(dtypes)}. Convert the checkpoint to one of them."
        )
    expected = math.prod(shape) * dtypes[dtype].itemsize
    if min(shape, default=0) < 0 or start < offset or end - start != expected:
        raise _not_safetensors(file, f"the byte range of tensor {name!r:.200} does not fit its shape")
    if end > size:
        raise CheckpointError(
            f"{file} is cut short: tensor {name!r:.200} ends at byte {end:,} but the file has {size:,}. "
            "Download or save the checkpoint again."
        )
    return TensorInfo(name, dtype, shape, file, start, end)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _whole(value: Any) -> int:
    if type(value) is not int or abs(value) >= 2**63:
        raise ValueError("it is not a size")
    return value


def _require_contiguous(file: SourceFile, tensors: Iterable[TensorInfo], start: int, size: int) -> None:
    """Tensors lie end to end from the header to the end of the file, as the format demands."""
    for info in sorted(tensors, key=lambda info: (info.start, info.end)):
        if info.start != start:
            raise _not_safetensors(file, f"tensor {info.name!r:.200} does not begin where the one before it ends")
        start = info.end
    if start != size:
        raise _not_safetensors(file, f"it has {size - start:,} bytes after its last tensor")


def _not_safetensors(file: SourceFile, why: str) -> CheckpointError:
    return CheckpointError(
        f"{file} is not a whole safetensors file: {why}. "
        "Save the checkpoint with `save_pretrained(..., safe_serialization=True)`, or copy it again."
    )
