"""Multi-SLERP: the weighted mean of directions, at the weighted mean of lengths (mergekit's, by C. Goddard)."""

import torch

from impart_core.merging.blocks import gram
from impart_core.merging.method import Each, Tensors, each, merge_method, shares


@merge_method("multislerp", "Multi-SLERP", "https://goddard.blog/posts/multislerp-wow-what-a-cool-idea")
def multislerp(
    tensors: Tensors,
    *,
    base: torch.Tensor | None = None,
    weight: Each,
    normalize_weights: bool = True,
    eps: float = 1e-8,
) -> torch.Tensor:
    """Return (Σ w_i·‖x_i‖)·u/‖u‖ with u = Σ w_i·x_i/‖x_i‖; x_i = W_i, or W_i − W_base, which is then added again.

    As published, the directions are moved to the tangent space at u/‖u‖, averaged there and moved back. Their mean
    there is u − ⟨u, u⟩/‖u‖²·u = 0: the way there and back changes nothing.

    Args:
        tensors: W_i, float32, all of one shape. One alone is returned.
        base: W_base.
        weight: w_i, one for each model.
        normalize_weights: whether the weights are divided by their sum.
        eps: is added to ‖x_i‖. Where ‖u‖ is smaller, Σ w_i·x_i is returned.

    Raises:
        ConfigError: the weights are divided by their sum, which is nought.
    """
    if len(tensors) == 1:
        return tensors[0].clone()
    weights = torch.tensor(shares(weight, tensors) if normalize_weights else each(weight, tensors), dtype=torch.float64)
    products = gram(tensors, base)
    norms = products.diagonal().sqrt()
    coefficients = weights / (norms + eps)
    length = (coefficients @ products @ coefficients).clamp(min=0).sqrt()
    coefficients = weights if length < eps else coefficients * (weights @ norms / length)
    return combined(tensors, coefficients.tolist(), base)


def combined(tensors: Tensors, coefficients: list[float], base: torch.Tensor | None = None) -> torch.Tensor:
    """Return Σ c_i·W_i, or W_base + Σ c_i·(W_i − W_base)."""
    if base is None:
        merged = tensors[0] * coefficients[0]
        for tensor, coefficient in zip(tensors[1:], coefficients[1:], strict=True):
            merged.add_(tensor, alpha=coefficient)
        return merged
    merged = base.clone()
    for tensor, coefficient in zip(tensors, coefficients, strict=True):
        merged.add_(tensor - base, alpha=coefficient)
    return merged
