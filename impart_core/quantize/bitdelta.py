"""BitDelta: ΔW ≈ s·sign(ΔW), one bit an entry, s = mean|ΔW| (Liu et al. 2024; PAPER.md §3).

That s is the best for the signs: it minimises ‖ΔW − s·sign(ΔW)‖. With a mask, as BitDelta is combined with DARE,
only kept entries have a bit and count in s; dividing s by the keep probability is the caller's.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from impart_core.codec.bitpack import UInt8Array, pack, packed_bytes, unpack
from impart_core.errors import TensorValueError

_CHUNK = 1 << 17  # entries worked on at once, to bound memory
SCALE_BYTES = 4  # float32: the mean of a delta may be far below what float16 holds exactly


@dataclass(frozen=True)
class SignCodes:
    """A delta as signs.

    Attributes:
        scales: s, float32, (1,), or one for each row, (m,).
        signs: bits of kept entries row by row, set where the entry is not negative; uint8, (⌈kept/8⌉,).
    """

    scales: torch.Tensor
    signs: UInt8Array

    @property
    def nbytes(self) -> int:
        """Bytes of both parts."""
        return SCALE_BYTES * len(self.scales) + len(self.signs)


def encode_signs(delta: torch.Tensor, name: str, per_row: bool = False, mask: torch.Tensor | None = None) -> SignCodes:
    """Return the signs and the mean magnitude of a delta.

    Args:
        delta: any floating dtype, (m, n).
        name: the tensor, for the error.
        per_row: one scale for each row; else one for all.
        mask: which entries are kept, bool, (m, n); None: all. A row without any has the scale 0.

    Raises:
        TensorValueError: the delta holds NaN or infinity.
    """
    values = delta.detach().cpu()
    keep = torch.ones(values.shape, dtype=torch.bool) if mask is None else mask.cpu().bool()
    positive, done = torch.empty(int(keep.count_nonzero()), dtype=torch.bool), 0
    total, count = [], []
    step = max(1, _CHUNK // values.shape[1])
    for part, kept in zip(torch.split(values, step), torch.split(keep, step), strict=True):
        if not bool(torch.isfinite(part).all()):
            raise TensorValueError(f"The delta of {name!r} holds NaN or infinity. Check both checkpoints.")
        total.append(torch.where(kept, part, 0.0).double().abs().sum(dim=1))
        count.append(kept.sum(dim=1))
        signs = part[kept] >= 0
        positive[done : done + len(signs)] = signs
        done += len(signs)
    sums, counts = torch.cat(total), torch.cat(count)
    if not per_row:
        sums, counts = sums.sum().reshape(1), counts.sum().reshape(1)
    scales = (sums / counts.clamp(min=1)).float()
    return SignCodes(scales, pack(positive.numpy().view(np.uint8), 1))


def decode_signs(codes: SignCodes, shape: tuple[int, int], mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return s·sign of every kept entry and zero elsewhere, float32, (m, n).

    Args:
        codes: what `encode_signs` returned.
        shape: (m, n).
        mask: the one that it was given.

    Raises:
        ValueError: the codes are not of such a delta.
    """
    if len(codes.scales) not in (1, shape[0]):
        raise ValueError(f"{len(codes.scales)} scales for {shape[0]} rows")
    kept = math.prod(shape) if mask is None else int(mask.count_nonzero())
    values = torch.from_numpy(unpack(codes.signs, 1, kept)).float().mul_(2).sub_(1)
    # Unlike an assignment to a mask, this makes no indices of 16 bytes an entry.
    signs = values.reshape(shape) if mask is None else torch.zeros(shape).masked_scatter_(mask.cpu().bool(), values)
    return signs.mul_(codes.scales[:, None])


def sign_bytes(kept: int, scales: int = 1) -> int:
    """Return the bytes of so many kept entries' signs and so many scales."""
    return packed_bytes(kept, 1) + SCALE_BYTES * scales
