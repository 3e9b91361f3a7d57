"""Linear: the weighted mean of the models' weights (model soups: Wortsman et al. 2022, arXiv 2203.05482)."""

import torch

from impart_core.merging.blocks import entries_of
from impart_core.merging.method import Each, Tensors, each, merge_method, shares
from impart_core.merging.sums import plain_sum


@merge_method("linear", "Linear", "arXiv 2203.05482", base="donor", entrywise=True)
def linear(tensors: Tensors, *, weight: Each, normalize: bool = True) -> torch.Tensor:
    """Return Σ w_i·W_i.

    Args:
        tensors: W_i, float32, all of one shape.
        weight: w_i, one for each model.
        normalize: whether the weights are divided by their sum.

    Raises:
        ConfigError: they are, and add up to nought.
    """
    weights = shares(weight, tensors) if normalize else each(weight, tensors)
    entries = [entries_of(tensor) for tensor in tensors]
    return plain_sum(tensors[0], entries, weights, normalize=False, lambda_=1.0)
