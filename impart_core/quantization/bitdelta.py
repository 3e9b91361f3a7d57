"""BitDelta: ΔW ≈ s·sign(ΔW), one bit an entry, s = mean|ΔW| (Liu et al. 2024).

That s is the best for the signs: it minimises ‖ΔW − s·sign(ΔW)‖. With a mask, as BitDelta is combined with DARE,
only kept entries have a bit and count in s; dividing s by the keep probability is the caller's.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from impart_core.base.errors import TensorValueError
from impart_core.codec.bitpack import UInt8Array, pack, packed_bytes, unpack
from impart_core.codec.mask import mask_words

_CHUNK = 1 << 17  # entries worked on at once, to bound memory
SCALE_BYTES = 4  # float32: the mean of a delta may be far below what float16 holds exactly


@dataclass(frozen=True)
class SignCodes:
    """A delta as signs.

    Attributes:
        scales: s, float32, (1,), or one for each row, (m,).
        signs: bits of kept entries row by row, set where it is positive, of a zero by a coin; uint8, (⌈kept/8⌉,).
    """

    scales: torch.Tensor
    signs: UInt8Array


def encode_signs(
    delta: torch.Tensor, name: str, per_row: bool = False, mask: torch.Tensor | None = None, coin: int = 0
) -> SignCodes:
    """Return the signs and the mean magnitude of a delta.

    An entry that is zero has a sign by a coin: with + for all of them their errors would add up in every output.

    Args:
        delta: any floating dtype, (m, n).
        name: the tensor, for the error.
        per_row: one scale for each row; else one for all.
        mask: which entries are kept, bool, (m, n); None: all. A row without any has the scale 0.
        coin: the key of the coins; see `mask_words`.

    Raises:
        TensorValueError: the delta holds NaN or infinity.
    """
    m, n = delta.shape
    values = delta.detach().cpu()
    keep = np.ones((m, n), dtype=np.bool_) if mask is None else mask.cpu().bool().numpy()
    total, count, signs = np.zeros(m), np.count_nonzero(keep, axis=1), []
    step = max(1, _CHUNK // n)
    for rows in (slice(first, first + step) for first in range(0, m, step)):
        part = values[rows].float().numpy()
        if not np.isfinite(part).all():
            raise TensorValueError(f"The delta of {name!r} holds NaN or infinity. Check both checkpoints.")
        total[rows] = np.where(keep[rows], np.abs(part), 0).sum(axis=1, dtype=np.float64)
        heads = (mask_words(coin, n, len(part), rows.start) & 1).astype(np.bool_) if (part == 0).any() else True
        signs.append(((part > 0) | ((part == 0) & heads))[keep[rows]])
    if not per_row:
        total, count = total.sum(keepdims=True), count.sum(keepdims=True)
    scales = torch.from_numpy((total / np.maximum(count, 1)).astype(np.float32))
    return SignCodes(scales, pack(np.concatenate(signs).view(np.uint8), 1))


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
