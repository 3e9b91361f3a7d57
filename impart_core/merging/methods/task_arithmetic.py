"""Task Arithmetic: W_base + λ·Σ w_i·ΔW_i (Ilharco et al. 2023, arXiv 2212.04089)."""

import torch

from impart_core.merging.method import Each, Tensors, each, merge_method

# What files of mergekit may give any method of this family, and that plain sums have no use for.
UNUSED = ("density", "rescale", "int8_mask")
LEAST_DIVISOR = 1e-8


@merge_method("task_arithmetic", "Task Arithmetic", "arXiv 2212.04089", ignored=UNUSED)
def task_arithmetic(deltas: Tensors, *, weight: Each, normalize: bool = False, lambda_: float = 1.0) -> torch.Tensor:
    """Return λ·Σ w_i·ΔW_i.

    Args:
        deltas: what each model adds to the base, float32, all of one shape.
        weight: w_i, one for each model.
        normalize: whether the sum is divided by Σ w_i, unless that is nought.
        lambda_: λ, the scaling term. The paper has one for all tasks: w_i = 1.
    """
    weights = each(weight, deltas)
    merged = deltas[0] * weights[0]
    for delta, own in zip(deltas[1:], weights[1:], strict=True):
        merged.add_(delta, alpha=own)
    total = sum(weights)
    if normalize and abs(total) >= LEAST_DIVISOR:
        merged.div_(total)
    return merged.mul_(lambda_) if lambda_ != 1 else merged
