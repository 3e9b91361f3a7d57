"""Arcee Fusion: take over the entries that matter most and differ most (as in mergekit; no paper)."""

import torch

from impart_core.merging.method import Tensors, merge_method
from impart_core.merging.selection import smallest

_LEAST = 1e-8  # added to probabilities, whose logarithm is taken
_ROWS_AT_ONCE = 1 << 20  # entries


@merge_method("arcee_fusion", "Arcee Fusion", "mergekit", base="among", models=(2, 2))
def arcee_fusion(tensors: Tensors) -> torch.Tensor:
    """Return W_0 + m∘(W_1 − W_0); m is 1 where the importance is median + 1.5·(Q3 − Q1) or more, else 0.

    The importance of an entry is |W_1 − W_0| times its row's KL(softmax W_1 ‖ softmax W_0). Quartiles are exact
    (mergekit samples a million entries).

    Args:
        tensors: W_0 of the base and W_1 of the other model, float32, of one shape; rows lie along the last dimension.
    """
    base, other = tensors
    if base.numel() == 0:
        return base.clone()
    delta = other - base
    importance = delta.abs().mul_(_divergence(other, base))
    importances = importance.flatten()
    places = [int(share * (len(importances) - 1)) for share in (0.25, 0.5, 0.75)]
    low, median, high = (smallest(importances, place) for place in places)
    return delta.mul_(importance.ge_(median + 1.5 * (high - low))).add_(base)


def _divergence(other: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Return KL(softmax W_1 ‖ softmax W_0) of each row, with the last dimension kept; of one number, 0."""
    if base.dim() == 0:
        return torch.zeros_like(base)
    rows = max(1, _ROWS_AT_ONCE // base.shape[-1])
    parts = []
    for some, theirs in zip(_rows(other, rows), _rows(base, rows), strict=True):
        p, q = (part.softmax(dim=-1).add_(_LEAST) for part in (some, theirs))
        parts.append((p * (p / q).log_()).sum(dim=-1, keepdim=True).clamp_(min=0))
    return torch.cat(parts).reshape(*base.shape[:-1], 1)


def _rows(tensor: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
    return torch.split(tensor.reshape(-1, tensor.shape[-1]), count)
