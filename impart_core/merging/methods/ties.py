"""TIES: trim, elect a sign, merge what agrees with it (Yadav et al. 2023, arXiv 2306.01708, Algorithm 1)."""

import math
from typing import Literal

import torch

from impart_core.merging.blocks import Entries
from impart_core.merging.method import Each, EachShare, Tensors, each, merge_method
from impart_core.merging.selection import largest
from impart_core.merging.sparse import rescaled
from impart_core.merging.sums import INT8_MASK, elected_sum, majority_sign

_DIGITS = 6  # of density × size, whose last digits are rounding


@merge_method("ties", "TIES", "arXiv 2306.01708", ignored=(INT8_MASK,))
def ties(
    deltas: Tensors,
    *,
    weight: Each,
    density: EachShare = 1.0,
    normalize: bool = True,
    rescale: bool = False,
    lambda_: float = 1.0,
    form: Literal["weighted", "paper"] = "weighted",
) -> torch.Tensor:
    """Return λ times the mean of the w_i·x_i that agree with the sign of Σ w_i·x_i; x_i is ΔW_i trimmed.

    The reference code of the ImPart paper is `form` "paper" with weights of 1. It keeps ⌈d·n⌉ + 1 of n entries, and
    where Σ x_i is nought it elects the sign that most entries of the sum have. The weighted form, mergekit's, keeps
    ⌊d·n⌋, at least one, and elects + there.

    Args:
        deltas: ΔW_i, float32, all of one shape.
        weight: w_i, one for each model.
        density: d_i, the share of entries that trimming keeps of each model: those largest in magnitude.
        normalize: whether the sum is divided by Σ w_i over the models that agree.
        rescale: whether a trimmed delta is scaled so as to keep its L1 norm.
        lambda_: λ, the scaling term.
        form: what trimming rounds to, and which sign wins where none has more.
    """
    weights = each(weight, deltas)
    entries = [
        _trimmed(delta, share, form, rescale) for delta, share in zip(deltas, each(density, deltas), strict=True)
    ]
    on_draw = majority_sign(deltas[0], entries, weights) if form == "paper" else 1.0
    merged = elected_sum(deltas[0], entries, weights, normalize=normalize, on_draw=on_draw)
    return merged.mul_(lambda_) if lambda_ != 1 else merged


def _trimmed(delta: torch.Tensor, density: float, form: str, rescale: bool) -> Entries:
    """Return what gives the entries of a delta of which only the largest are not nought."""
    size = density * delta.numel()
    count = math.ceil(round(size, _DIGITS)) + 1 if form == "paper" else max(1, int(size))
    kept, flat = largest(delta, count), delta.reshape(-1)

    def entries(block: slice) -> torch.Tensor:
        return kept.mask(flat[block], block.start).mul_(flat[block])

    return rescaled(entries, delta) if rescale else entries
