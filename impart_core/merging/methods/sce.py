"""SCE: select what varies, calculate weights, erase minority signs (Wan et al. 2024, arXiv 2408.07990, §3.3)."""

from typing import Annotated

import torch
from pydantic import Field

from impart_core.merging.blocks import Entries, blocks, entries_of
from impart_core.merging.method import Share, Tensors, merge_method
from impart_core.merging.selection import largest
from impart_core.merging.sums import INT8_MASK, elected_sum


@merge_method("sce", "SCE", "arXiv 2408.07990", ignored=(INT8_MASK,))
def sce(deltas: Tensors, *, select_topk: Share = 1.0, even_below: Annotated[float, Field(ge=0)] = 1e-6) -> torch.Tensor:
    """Return the mean of the x_i, weighted by ‖x_i‖², over the models that agree with the sign of Σ x_i.

    Args:
        deltas: ΔW_i, float32, all of one shape.
        select_topk: the share of entries, of those whose variance over the models is not nought, that is selected:
            those of the largest variance. x_i is ΔW_i at these, else nought.
        even_below: all models weigh the same where the mean squares of the entries of x_i add up to less. mergekit's
            is 1e-6, more than many fine-tunes have; in the paper there is no such bound.
    """
    entries = [entries_of(delta) for delta in deltas]
    if select_topk < 1:
        variance = _variance(deltas)
        selected = largest(variance, int(select_topk * int(torch.count_nonzero(variance))))
        flat = variance.reshape(-1)
        entries = [_selected(one, lambda block: selected.mask(flat[block], block.start)) for one in entries]
    energies = [_mean_square(one, deltas[0]) for one in entries]
    total = sum(energies)
    even = total < even_below or total == 0
    weights = [1 / len(deltas) if even else energy / total for energy in energies]
    return elected_sum(deltas[0], entries, weights, normalize=True, votes=[1.0] * len(deltas))


def _selected(entries: Entries, mask: Entries) -> Entries:
    return lambda block: entries(block) * mask(block)


def _variance(deltas: Tensors) -> torch.Tensor:
    """Return the variance over the models of each entry, flat; nought exactly where all are equal."""
    variance = torch.empty(deltas[0].numel(), device=deltas[0].device)
    for block in blocks(deltas[0]):
        first, *others = (delta.reshape(-1)[block] for delta in deltas)
        total, squares = torch.zeros_like(first), torch.zeros_like(first)
        for value in others:
            away = value - first
            total.add_(away)
            squares.addcmul_(away, away)
        variance[block] = squares.div_(len(deltas)).addcmul_(total, total, value=-1 / len(deltas) ** 2)
    return variance


def _mean_square(entries: Entries, like: torch.Tensor) -> float:
    """Return the mean square of a model's entries; sums of blocks are added in float64."""
    total = sum(float(entries(block).square().sum()) for block in blocks(like))
    return total / max(1, like.numel())
