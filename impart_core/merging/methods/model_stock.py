"""Model Stock: between the base and the fine-tunes' mean, by their angle (Jang et al. 2024, arXiv 2403.19522, §4)."""

from itertools import combinations

import torch

from impart_core.merging.blocks import gram
from impart_core.merging.method import Tensors, merge_method

_SINGULAR = 1e-6  # 1 + (N − 1)·cos θ below which the ratio has no meaning: the deltas cancel


@merge_method("model_stock", "Model Stock", "arXiv 2403.19522", models=(2, None))
def model_stock(deltas: Tensors, *, filter_wise: bool = False) -> torch.Tensor:
    """Return t·(1/N)·Σ ΔW_i with t = N·cos θ/(1 + (N − 1)·cos θ), θ the angle between two deltas.

    The paper has one angle for all pairs; here cos θ is the mean over the pairs, as in mergekit. t is 0 where the
    denominator is, and for one model alone, which has no angle: the base stays.

    Args:
        deltas: ΔW_i of N models, float32, all of one shape.
        filter_wise: whether each vector along the last dimension has an angle of its own, or the tensor one.
    """
    count = len(deltas)
    if count == 1:
        return torch.zeros_like(deltas[0])
    cosine = _mean_cosine(deltas, filter_wise and deltas[0].dim() > 0)
    denominator = 1 + (count - 1) * cosine
    singular = denominator.abs() < _SINGULAR
    t = torch.where(singular, 0.0, count * cosine / torch.where(singular, 1.0, denominator))
    merged = deltas[0] / count
    for delta in deltas[1:]:
        merged.add_(delta, alpha=1 / count)
    return merged.mul_(t)


def _mean_cosine(deltas: Tensors, filter_wise: bool) -> torch.Tensor:
    """Return the mean of cos θ over all pairs, without dimensions or one for each row; 0 for pairs with a zero."""
    pairs = list(combinations(range(len(deltas)), 2))
    if not filter_wise:
        products = gram(deltas)
        norms = products.diagonal().sqrt()
        size = torch.outer(norms, norms)
        cosines = torch.where(size > 0, products / size, 0.0).clamp(-1, 1)
        return torch.stack([cosines[pair] for pair in pairs]).mean()
    total = torch.zeros_like(deltas[0][..., :1])
    for first, second in pairs:
        size = deltas[first].norm(dim=-1, keepdim=True) * deltas[second].norm(dim=-1, keepdim=True)
        product = torch.linalg.vecdot(deltas[first], deltas[second]).unsqueeze(-1)
        total += torch.where(size > 0, product / size, 0.0).clamp_(-1, 1)
    return total / len(pairs)
