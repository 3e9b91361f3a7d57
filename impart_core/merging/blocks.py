"""Tensors a block of entries at a time: what is computed between reading and writing an entry stays in the cache."""

from collections.abc import Callable, Iterator, Sequence

import torch

# Gives the entries of one model in a block, flat; they are only read.
Entries = Callable[[slice], torch.Tensor]

# 128 kB of float32: a dozen such blocks fit a core's cache, and the C library keeps them from one use to the next.
# Elsewhere each operation on a block costs a launch, so that blocks are there to bound memory.
_ON_CPU, _ELSEWHERE = 1 << 15, 1 << 22


def blocks(tensor: torch.Tensor, device: torch.device | None = None) -> Iterator[slice]:
    """Yield the blocks of a tensor's entries, row by row, by their positions in the flat tensor.

    Args:
        tensor: the tensor.
        device: where blocks are computed, if not where the tensor lies.
    """
    size = _ON_CPU if (device or tensor.device).type == "cpu" else _ELSEWHERE
    for start in range(0, tensor.numel(), size):
        yield slice(start, min(start + size, tensor.numel()))


def entries_of(tensor: torch.Tensor) -> Entries:
    """Return what gives a tensor's own entries."""
    return tensor.reshape(-1).__getitem__


def gram(tensors: Sequence[torch.Tensor], origin: torch.Tensor | None = None) -> torch.Tensor:
    """Return the inner products ⟨T_i − O, T_j − O⟩ of all pairs, float64, (models, models), on the CPU.

    In float64, since fine-tunes of one base are nearly parallel: their angles are in the last digits.

    Args:
        tensors: T_i, all of one shape.
        origin: O, of this shape too; None: nought.
    """
    flat = [tensor.reshape(-1) for tensor in tensors]
    away = None if origin is None else origin.reshape(-1)
    products = torch.zeros((len(flat), len(flat)), dtype=torch.float64, device=flat[0].device)
    for block in blocks(flat[0]):
        rows = torch.stack([one[block].double() for one in flat])
        if away is not None:
            rows -= away[block]
        products += rows @ rows.T
    return products.cpu()
