"""Lazy reading: one tensor at a time, into memory of its own, nothing kept."""

import hashlib
from collections.abc import Iterable

import torch

from impart_core.base.errors import CheckpointError
from impart_core.checkpoint.header import TensorInfo


def read_tensor(info: TensorInfo, digest: str | None = None) -> torch.Tensor:
    """Read one tensor, in its stored dtype and shape, on the CPU.

    Args:
        info: where it lies.
        digest: what `tensor_digest` gave before; None leaves the content unchecked.

    Raises:
        CheckpointError: the file cannot be read, is shorter than when it was indexed, or was changed.
    """
    tensor = torch.empty(info.shape, dtype=info.torch_dtype)  # not a bytearray, which would be zeroed first
    if not info.nbytes:
        return tensor
    buffer = tensor.reshape(-1).view(torch.uint8).numpy().data
    if info.file.read_into(info.start, buffer) < len(buffer):
        raise CheckpointError(f"{info.file} became shorter while tensor {info.name!r} was read.")
    if digest is not None and _digest(info, [buffer]) != digest:
        raise _changed(info)
    return tensor


def tensor_digest(info: TensorInfo) -> str:
    """Return the SHA-256 (hex) of a tensor's dtype, shape and stored bytes: equal wherever it is stored.

    The tensor is read piece by piece; errors as in `read_tensor`.
    """
    return _digest(info, info.file.chunks(info.start, info.end))


def digest_of_value(tensor: torch.Tensor, dtype: str) -> str:
    """Return what `tensor_digest` gives of a tensor at hand, on the CPU, once it is stored.

    Args:
        tensor: the tensor.
        dtype: its safetensors dtype name.
    """
    digest = hashlib.sha256(f"{dtype}{list(tensor.shape)}".encode())
    if tensor.numel():
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def require_digest(info: TensorInfo, digest: str) -> None:
    """Check a tensor's content without holding it; errors as in `read_tensor`."""
    if tensor_digest(info) != digest:
        raise _changed(info)


def _changed(info: TensorInfo) -> CheckpointError:
    return CheckpointError(f"{info.file} was changed while it was in use (tensor {info.name!r}). Run again.")


def _digest(info: TensorInfo, pieces: Iterable[bytearray | memoryview]) -> str:
    digest = hashlib.sha256(f"{info.dtype}{list(info.shape)}".encode())
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()
