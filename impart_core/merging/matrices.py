"""What methods that merge matrices do with tensors of other dimensions: one way for them all."""

from collections.abc import Callable

import torch

from impart_core.merging.method import Tensors

OfMatrices = Callable[[list[torch.Tensor]], torch.Tensor]


def matrix_wise(deltas: Tensors, weights: list[float], merge: OfMatrices) -> torch.Tensor:
    """Return what `merge` makes of w_i·ΔW_i: of matrices, of a stack of matrices one by one, of other tensors the mean.

    Args:
        deltas: ΔW_i, float32, all of one shape. Three dimensions are a stack, such as the experts of a layer.
        weights: w_i.
        merge: merges matrices, float32, all of one shape.
    """
    if deltas[0].dim() == 3:
        merged = torch.empty_like(deltas[0], memory_format=torch.contiguous_format)
        for number in range(len(merged)):
            merged[number] = matrix_wise([delta[number] for delta in deltas], weights, merge)
        return merged
    if deltas[0].dim() == 2 and deltas[0].numel() > 0:
        return merge([delta * weight for delta, weight in zip(deltas, weights, strict=True)])
    mean = torch.zeros_like(deltas[0])
    for delta, weight in zip(deltas, weights, strict=True):
        mean.add_(delta, alpha=weight / len(deltas))
    return mean
