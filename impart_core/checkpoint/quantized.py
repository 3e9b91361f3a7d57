"""Quantised checkpoints: FP8 and MXFP4 read as the values that they stand for, other formats refused by name.

A value of FP8 is its code times a scale, of the whole tensor, of a row, or of a block of rows and columns
(`weight_scale_inv`, `weight_scale`). A value of MXFP4 is one of sixteen numbers times a power of two for each 32
(`_blocks`, `_scales`), laid out as in gpt-oss: experts × outputs × groups × 16 bytes stand for experts × inputs ×
outputs. Both are decoded when they are read, tensor by tensor, to what transformers makes of them with
`dequantize=True`; digests are of the decoded values.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch

from impart_core.base.errors import CheckpointError
from impart_core.checkpoint.header import DTYPE_NAMES, TensorInfo
from impart_core.checkpoint.index import Checkpoint
from impart_core.checkpoint.reader import read_tensor
from impart_core.checkpoint.source import CHUNK, ComputedFile, SourceFile

SETTINGS = ("quantization_config", "compression_config")  # the configuration's keys that say how it is quantised
_SCALES = ("_scale_inv", "_scale")
_FP8 = ("F8_E4M3", "F8_E5M2")
_BLOCKS, _BLOCK_SCALES = "_blocks", "_scales"
_ACTIVATIONS = ("input_scale", "activation_scale", "input_scale_inv", "output_scale", "k_scale", "v_scale", "q_scale")
_E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
_FP4 = torch.cat([_E2M1, -_E2M1])  # by code: the highest of its four bits is the sign
_PACKED = ("I8", "U8", "I16", "U16", "I32", "U32")
_FORMATS = {
    (".qweight", ".qzeros", ".g_idx"): "GPTQ or AWQ",
    (".absmax", ".quant_map", ".nested_absmax"): "bitsandbytes, 4 bits",
    (".SCB", ".weight_format"): "bitsandbytes, 8 bits",
    (".weight_packed", ".weight_zero_point", ".weight_global_scale"): "compressed-tensors",
}


@dataclass(frozen=True)
class Quantized:
    """A tensor's codes and scales.

    Attributes:
        name: the tensor's.
        codes: of FP8 as the tensor (…, m, n), of MXFP4 (experts, n, groups, 16).
        scales: one, or a grid over rows and columns; of MXFP4 (experts, n, groups).
        block: rows and columns that share a scale of FP8; None for MXFP4.
        dtype: that of its values.
    """

    name: str
    codes: TensorInfo
    scales: TensorInfo
    block: tuple[int, int] | None
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of its values."""
        if self.block is not None:
            return self.codes.shape
        experts, columns, groups, half = self.codes.shape
        return (experts, 2 * half * groups, columns)

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, start: int, end: int) -> memoryview:
        """Return the bytes of its values from `start` to before `end`, which lie in one matrix."""
        *_, m, n = (1, *self.shape)
        row = n * self.dtype.itemsize
        matrix, offset = divmod(start, m * row)
        first, last = offset // row, -(-(end - matrix * m * row) // row)
        decode = self._fp8 if self.block else self._mxfp4
        values = decode(matrix, first, last).to(self.dtype).contiguous().view(torch.uint8).flatten()
        return memoryview(values[offset - first * row :][: end - start].numpy().tobytes())

    def reach(self, start: int) -> int:
        """Return how many bytes from `start` on are decoded together: those of some rows of a matrix, or of all."""
        *_, m, n = (1, *self.shape)
        matrix, row = m * n * self.dtype.itemsize, n * self.dtype.itemsize
        piece = max(row, CHUNK // row * row) if self.block else matrix
        offset = start % matrix
        return min(matrix, (offset // piece + 1) * piece) - offset

    def _fp8(self, matrix: int, first: int, last: int) -> torch.Tensor:
        """Return rows of a matrix, float32."""
        assert self.block is not None
        *_, m, n = (1, *self.shape)
        start = self.codes.start + (matrix * m + first) * n
        part = replace(self.codes, shape=(last - first, n), start=start, end=start + (last - first) * n)
        codes, scales = read_tensor(part).float(), read_tensor(self.scales).float()
        if scales.numel() == 1:
            return codes * scales.flatten()
        rows, columns = torch.arange(first, last) // self.block[0], torch.arange(n) // self.block[1]
        grid = scales.reshape(-1, -(-m // self.block[0]), -(-n // self.block[1]))[matrix]
        return codes * grid[rows][:, columns]

    def _mxfp4(self, matrix: int, first: int, last: int) -> torch.Tensor:
        """Return rows of an expert, float32."""
        codes = read_tensor(self.codes.part(matrix))
        exponents = read_tensor(self.scales.part(matrix)).to(torch.int32) - 127
        values = torch.stack([_FP4[(codes & 15).long()], _FP4[(codes >> 4).long()]], dim=-1).flatten(-2)
        return values.ldexp(exponents.unsqueeze(-1)).flatten(1).T[first:last]


@dataclass(frozen=True)
class ValuesFile(ComputedFile):
    """The values of the quantised tensors of a file, as if a file held them end to end."""

    tensors: tuple[Quantized, ...] = field(compare=False, repr=False)

    @cached_property
    def starts(self) -> list[int]:
        """Where each tensor begins."""
        return list(accumulate((tensor.nbytes for tensor in self.tensors), initial=0))

    def chunks(self, start: int, end: int) -> Iterator[memoryview]:
        """Give the bytes from `start` to before `end` in the pieces that are decoded together."""
        starts = self.starts
        while start < end:
            number = bisect_right(starts, start) - 1
            tensor, offset = self.tensors[number], start - starts[number]
            stop = min(offset + tensor.reach(offset), end - starts[number])
            yield tensor.read(offset, stop)
            start = starts[number] + stop


def dequantized(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint with the values that its quantised tensors stand for; one that has none as it is.

    Its configuration says no longer that it is quantised.

    Raises:
        CheckpointError: it is quantised in a format that is not read here; the message names it.
    """
    found = [*_find_fp8(checkpoint), *_find_mxfp4(checkpoint)]
    parts = {info.name for one in found for info in (one.codes, one.scales)}
    rest = {name: info for name, info in checkpoint.tensors.items() if name not in parts}
    if found:
        rest = {name: info for name, info in rest.items() if not name.endswith(_ACTIVATIONS)}
    _refuse_others(checkpoint, rest)
    if not found:
        return _with_settings_noted(checkpoint)
    note = (
        f"{checkpoint.location} is quantised ({_format(checkpoint, 'FP8 or MXFP4')}): {len(found)} of its tensors are "
        "read as the values that they stand for, and the rebuilt model is not quantised."
    )
    plain = checkpoint.without_settings(SETTINGS)
    return replace(plain, tensors=dict(sorted({**rest, **_laid_out(found)}.items())), notes=(*plain.notes, note))


def require_own_values(checkpoint: Checkpoint) -> None:
    """Check that a checkpoint's tensors are read as they are stored.

    Raises:
        CheckpointError: it is quantised.
    """
    found = sum(isinstance(info.file, ValuesFile) for info in checkpoint.tensors.values())
    if found:
        raise CheckpointError(
            f"{checkpoint.location} is quantised: {found} of its tensors are read as the values that they stand for. "
            "These would come back, not its own bytes, which are fewer. Store the checkpoint as it is, or give the one "
            "that it was quantised from."
        )


def _with_settings_noted(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint of plain weights, with a note where its configuration says that they are quantised."""
    if not any(isinstance(checkpoint.config.get(key), Mapping) for key in SETTINGS):
        return checkpoint
    note = (
        f"{checkpoint.location} holds plain weights, but its configuration says that it is quantised "
        f"({_format(checkpoint, 'in a format that it does not name')}). The weights are read as they are; the "
        "configuration is kept, and says how transformers loads them."
    )
    return replace(checkpoint, notes=(*checkpoint.notes, note))


def _laid_out(found: list[Quantized]) -> dict[str, TensorInfo]:
    """Return the tensors' places in files of values, one for each file of codes."""
    by_file: dict[SourceFile, list[Quantized]] = {}
    for one in found:
        by_file.setdefault(one.codes.file, []).append(one)
    placed = {}
    for file, tensors in by_file.items():
        behind = {info.file for one in tensors for info in (one.codes, one.scales)}
        stamps = [f"{each.address} {each.stamp}" for each in sorted(behind, key=str)]
        stamp = None if any(each.stamp is None for each in behind) else "; ".join(stamps)
        size = sum(one.nbytes for one in tensors)
        values = ValuesFile(f"{file.address}#{tensors[0].dtype}", size, stamp, tuple(tensors))
        start = 0
        for one in tensors:
            end = start + one.nbytes
            placed[one.name] = TensorInfo(one.name, DTYPE_NAMES[one.dtype], one.shape, values, start, end)
            start = end
    return placed


def _find_fp8(checkpoint: Checkpoint) -> Iterator[Quantized]:
    for name, info in checkpoint.tensors.items():
        if info.dtype not in _FP8:
            continue
        scale = next((checkpoint.tensors[name + s] for s in _SCALES if name + s in checkpoint.tensors), None)
        if scale is None or not scale.is_floating:
            raise CheckpointError(
                f"{checkpoint.location} holds {name!r} as {info.dtype} without scales ({' or '.join(_SCALES)}), so "
                "that its values cannot be told. Give the checkpoint that it was quantised from."
            )
        yield Quantized(name, info, scale, _block(checkpoint, info, scale), _dtype(checkpoint))


def _block(checkpoint: Checkpoint, info: TensorInfo, scale: TensorInfo) -> tuple[int, int]:
    """Return how many rows and columns share a scale."""
    *stack, m, n = (1, 1, *info.shape)[-max(2, len(info.shape)) :]
    if scale.numel == 1:
        return m, n
    *their_stack, rows, columns = scale.shape if len(scale.shape) > 1 else (*scale.shape, 1)
    if tuple(their_stack) == tuple(stack) and min(m, n, rows, columns) > 0:
        for block in _settings(checkpoint, "weight_block_size", "block_structure"):
            if (-(-m // block[0]), -(-n // block[1])) == (rows, columns):
                return block
        if m % rows == 0 and n % columns == 0:
            return m // rows, n // columns
    raise CheckpointError(
        f"{checkpoint.location}: the scales {scale.name!r} {list(scale.shape)} do not divide {info.name!r} "
        f"{list(info.shape)} into blocks. Give the checkpoint that it was quantised from."
    )


def _find_mxfp4(checkpoint: Checkpoint) -> Iterator[Quantized]:
    for name, info in checkpoint.tensors.items():
        own = name.removesuffix(_BLOCKS)
        scales = checkpoint.tensors.get(own + _BLOCK_SCALES)
        if own == name or scales is None or not info.dtype == scales.dtype == "U8":
            continue
        if len(info.shape) == 4 and info.shape == (*scales.shape, 16) and min(info.shape) > 0:
            yield Quantized(own, info, scales, None, _dtype(checkpoint))


def _refuse_others(checkpoint: Checkpoint, rest: Mapping[str, TensorInfo]) -> None:
    for suffixes, name in _FORMATS.items():
        if any(tensor.endswith(suffixes) for tensor in rest):
            raise _unreadable(checkpoint, _format(checkpoint, name))
    said = any(isinstance(checkpoint.config.get(key), Mapping) for key in SETTINGS)
    if said and any(info.dtype in _PACKED and len(info.shape) > 1 for info in rest.values()):
        raise _unreadable(checkpoint, _format(checkpoint, "in a format that its configuration does not name"))


def _unreadable(checkpoint: Checkpoint, what: str) -> CheckpointError:
    return CheckpointError(
        f"{checkpoint.location} is quantised ({what}): its tensors are codes, and a difference of codes is no delta. "
        "Give the checkpoint that it was quantised from, or load it, call `dequantize()` and save that."
    )


def _format(checkpoint: Checkpoint, otherwise: str) -> str:
    """Return what the configuration calls the format, with its bits."""
    for key in SETTINGS:
        settings = checkpoint.config.get(key)
        if isinstance(settings, Mapping) and isinstance(settings.get("quant_method"), str):
            bits = settings.get("bits") or (4 if settings.get("load_in_4bit") else None)
            return f"{settings['quant_method']:.40}" + (f", {bits} bits" if isinstance(bits, int) else "")
    return otherwise


def _settings(checkpoint: Checkpoint, *names: str) -> Iterator[tuple[int, int]]:
    """Give the pairs of numbers that the quantisation's settings hold under these names."""
    waiting: list[Any] = [checkpoint.config.get(key) for key in SETTINGS]
    while waiting:
        settings = waiting.pop()
        for name, value in settings.items() if isinstance(settings, Mapping) else ():
            pair = isinstance(value, (list, tuple)) and len(value) == 2
            if name in names and pair and all(type(side) is int and side > 0 for side in value):
                yield value[0], value[1]
            waiting.append(value)


def _dtype(checkpoint: Checkpoint) -> torch.dtype:
    """Return the dtype that the configuration says the model computes in, else bfloat16."""
    named = str(checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype")).removeprefix("torch.")
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    return known.get(named, torch.bfloat16)
