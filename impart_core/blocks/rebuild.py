"""Rebuilding tensors: W_base + ΔŴ, added in float32 and cast once."""

from collections.abc import Mapping

import torch

from impart_core.base.errors import CorruptArtifactError
from impart_core.checkpoint.header import DTYPES, TensorInfo
from impart_core.checkpoint.reader import read_tensor
from impart_core.codec.exact import decode_exact
from impart_core.codec.format import ADDED, EXACT, PLANES, RESIDUAL, VALUE, BlockFile, TensorHeader
from impart_core.delta.extract import add_delta, extract_delta
from impart_core.methods.decode import decode_delta, decode_stack, delta_shape


def rebuild_tensor(
    name: str,
    base: Mapping[str, TensorInfo],
    header: TensorHeader,
    block: BlockFile,
    *,
    lossy: torch.Tensor | None = None,
    portable: bool = False,
) -> torch.Tensor:
    """Return W_base + ΔŴ in the fine-tuned checkpoint's dtype: added in float32, cast once; or its bits as stored.

    Args:
        name: the tensor.
        base: the base's tensors by name.
        header: how it is stored.
        block: where.
        lossy: what the lossy delta rebuilds, where the residual to that is stored.
        portable: whether ΔŴ is to be in the same bits on every machine; see `decode_delta`.

    Raises:
        CorruptArtifactError: the codes do not fit the tensor, in this file or in the base.
    """
    dtype = DTYPES[header.dtype]
    if header.method == VALUE:
        value = block.codes(name).get("value")
        if value is None or (value.shape, value.dtype) != (header.shape, dtype):
            raise CorruptArtifactError(f"{block.path} does not hold {name!r} as its header says.")
        return value
    if header.method in EXACT:
        return _rebuild_bits(name, base, header, block, lossy)
    info = base.get(header.base or name)
    if header.is_stack and info and info.shape == header.shape:
        stack = torch.empty(header.shape, dtype=dtype)
        for index, delta in enumerate(decode_stack(block, name, portable=portable)):
            stack[index] = add_delta(read_tensor(info.part(index)), delta, dtype)
        return stack
    codes = block.codes(name)
    if info is None or info.shape != _shape_in_base(name, header, codes):  # before memory is taken for the shape
        raise CorruptArtifactError(f"{block.path} holds a delta of {name!r} that does not fit the base's tensor.")
    common = add_delta(read_tensor(info), decode_delta(name, header, codes, portable=portable), dtype)
    return torch.cat([common, codes[ADDED]]) if ADDED in codes else common


def _rebuild_bits(
    name: str,
    base: Mapping[str, TensorInfo],
    header: TensorHeader,
    block: BlockFile,
    lossy: torch.Tensor | None,
) -> torch.Tensor:
    """Return a tensor that is stored bit for bit; errors as above."""
    codes, info, dtype = block.codes(name), base.get(header.base or name), DTYPES[header.dtype]
    shape = _shape_in_base(name, header, codes)
    reference = None
    if header.method == RESIDUAL:
        if lossy is None or (lossy.shape, lossy.dtype) != (shape, dtype):
            raise CorruptArtifactError(f"{block.path} holds a residual of {name!r} that fits no lossy delta's tensor.")
        reference = lossy
    elif header.method != PLANES:
        if info is None or (info.shape, info.torch_dtype) != (shape, dtype):
            raise CorruptArtifactError(f"{block.path} holds differences of {name!r} that do not fit the base's tensor.")
        reference = read_tensor(info)
    common = decode_exact(header.method, codes, name, shape, reference, dtype)
    return torch.cat([common, codes[ADDED]]) if ADDED in codes else common


def read_delta(
    name: str,
    base: Mapping[str, TensorInfo],
    header: TensorHeader,
    block: BlockFile,
    lossy: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """Return ΔŴ of a tensor, float32, in the shape of the base's, without the final cast; None where it is zero.

    Added rows are no part of it; a tensor that is stored whole is held against the base's. Arguments are as for
    `rebuild_tensor`.

    Raises:
        CorruptArtifactError: the codes do not fit the tensor, in this file or in the base.
    """
    info = base.get(header.base or name)
    if header.method in EXACT:
        value = rebuild_tensor(name, base, header, block, lossy=lossy)
        if info is None or info.shape[1:] != value.shape[1:] or len(info.shape) != value.dim():
            return None
        return extract_delta(read_tensor(info), value[: info.shape[0]] if info.shape else value, name)
    if header.method == VALUE:
        value = rebuild_tensor(name, base, header, block)
        return None if info is None or info.shape != header.shape else value.float() - read_tensor(info).float()
    if header.is_stack and info and info.shape == header.shape:
        stack = torch.zeros(header.shape)
        for index, delta in enumerate(decode_stack(block, name)):
            if delta is not None:
                stack[index] = delta
        return stack
    codes = block.codes(name)
    if info is None or info.shape != _shape_in_base(name, header, codes):
        raise CorruptArtifactError(f"{block.path} holds a delta of {name!r} that does not fit the base's tensor.")
    return decode_delta(name, header, codes)


def _shape_in_base(name: str, header: TensorHeader, codes: dict[str, torch.Tensor]) -> tuple[int, ...]:
    try:
        return delta_shape(header, codes)
    except (ValueError, IndexError) as error:
        raise CorruptArtifactError(f"The codes of {name!r} do not fit its header: {error}") from error
