"""Task Arithmetic: W_base + λ·Σ w_i·ΔW_i (Ilharco et al. 2023, arXiv 2212.04089)."""

import torch

from impart_core.merging.blocks import entries_of
from impart_core.merging.method import Each, Tensors, each, merge_method
from impart_core.merging.sums import INT8_MASK, plain_sum

_IGNORED = ("density", "rescale", INT8_MASK)


@merge_method("task_arithmetic", "Task Arithmetic", "arXiv 2212.04089", ignored=_IGNORED, entrywise=True)
def task_arithmetic(deltas: Tensors, *, weight: Each, normalize: bool = False, lambda_: float = 1.0) -> torch.Tensor:
    """Return λ·Σ w_i·ΔW_i.

    Args:
        deltas: what each model adds to the base, float32, all of one shape.
        weight: w_i, one for each model.
        normalize: whether the sum is divided by Σ w_i, unless that is nought.
        lambda_: λ, the scaling term. The paper has one for all tasks: w_i = 1.
    """
    entries = [entries_of(delta) for delta in deltas]
    return plain_sum(deltas[0], entries, each(weight, deltas), normalize=normalize, lambda_=lambda_)
