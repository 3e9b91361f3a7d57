"""Passthrough: the weights of one model, as they are or scaled; for models that are put together from slices."""

import torch

from impart_core.merging.method import Each, Tensors, each, merge_method


@merge_method("passthrough", "Passthrough", "mergekit", base="donor", models=(1, 1), entrywise=True)
def passthrough(tensors: Tensors, *, scale: Each = 1.0) -> torch.Tensor:
    """Return s·W.

    Args:
        tensors: W alone, float32.
        scale: s.
    """
    return tensors[0] * each(scale, tensors)[0]
