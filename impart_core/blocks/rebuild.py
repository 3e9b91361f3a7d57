"""Rebuilding tensors: W_base + ΔŴ, added in float32 and cast once."""

import torch

from impart_core.base.errors import CorruptArtifactError
from impart_core.checkpoint.header import DTYPES
from impart_core.checkpoint.index import Checkpoint
from impart_core.checkpoint.reader import read_tensor
from impart_core.codec.format import ADDED, VALUE, BlockFile, TensorHeader
from impart_core.delta.extract import add_delta
from impart_core.methods.decode import decode_delta, decode_stack, delta_shape


def rebuild_tensor(name: str, base: Checkpoint, header: TensorHeader, block: BlockFile) -> torch.Tensor:
    """Return W_base + ΔŴ in the fine-tuned checkpoint's dtype: added in float32, cast once.

    Raises:
        CorruptArtifactError: the codes do not fit the tensor, in this file or in the base.
    """
    dtype = DTYPES[header.dtype]
    if header.method == VALUE:
        value = block.codes(name).get("value")
        if value is None or (value.shape, value.dtype) != (header.shape, dtype):
            raise CorruptArtifactError(f"{block.path} does not hold {name!r} as its header says.")
        return value
    info = base.tensors.get(header.base or name)
    if header.is_stack and info and info.shape == header.shape:
        stack = torch.empty(header.shape, dtype=dtype)
        for index, delta in enumerate(decode_stack(block, name)):
            stack[index] = add_delta(read_tensor(info.part(index)), delta, dtype)
        return stack
    codes = block.codes(name)
    if info is None or info.shape != _shape_in_base(name, header, codes):  # before memory is taken for the shape
        raise CorruptArtifactError(f"{block.path} holds a delta of {name!r} that does not fit the base's tensor.")
    common = add_delta(read_tensor(info), decode_delta(name, header, codes), dtype)
    return torch.cat([common, codes[ADDED]]) if ADDED in codes else common


def _shape_in_base(name: str, header: TensorHeader, codes: dict[str, torch.Tensor]) -> tuple[int, ...]:
    try:
        return delta_shape(header, codes)
    except (ValueError, IndexError) as error:
        raise CorruptArtifactError(f"The codes of {name!r} do not fit its header: {error}") from error
