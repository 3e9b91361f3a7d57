"""SLERP and NuSLERP: along the arc between two models (Shoemake 1985, doi 10.1145/325334.325242)."""

from typing import Annotated

import torch

from impart_core.merging.blocks import gram
from impart_core.merging.method import Each, Tensors, each, merge_method

# Closer than this to one line, two vectors are interpolated along it. For NuSLERP this is what float32 tells apart.
_SLERP_LINE, _NUSLERP_LINE = 0.9995, 1 - 2.0**-24
_LEAST_SUM = 1e-6  # weights that add up to less have no ratio


@merge_method("slerp", "SLERP", "doi 10.1145/325334.325242", base="among", models=(2, 2))
def slerp(tensors: Tensors, *, t: Annotated[float, "0 is the base, 1 the other model"]) -> torch.Tensor:
    """Return sin((1−t)θ)/sin θ·W_0 + sin(tθ)/sin θ·W_1, where θ is the angle between W_0 and W_1.

    Args:
        tensors: W_0 of the base and W_1 of the other model, float32, of one shape.
        t: how far to go from the base.
    """
    start, end = tensors
    first, second = _arc(_cosine(start, end, None), t, _SLERP_LINE)
    return (start * first).add_(end * second)


@merge_method("nuslerp", "NuSLERP", "doi 10.1145/325334.325242", models=(2, 2))
def nuslerp(
    tensors: Tensors,
    *,
    base: torch.Tensor | None = None,
    weight: Each,
    nuslerp_row_wise: bool = False,
    nuslerp_flatten: bool = True,
) -> torch.Tensor:
    """Return what SLERP makes of two models at t = w_1/(w_0 + w_1), or of what they add to a base.

    Args:
        tensors: W_0 and W_1, float32, of one shape. One alone is returned.
        base: where given, W_i − W_base are interpolated and added to it.
        weight: w_0 and w_1; where they add up to nought, t is ½.
        nuslerp_row_wise: if not flat: whether the vectors lie along the first dimension instead of the last.
        nuslerp_flatten: whether the whole tensors are the vectors.
    """
    if len(tensors) == 1:
        return tensors[0].clone()
    start, end = tensors if base is None else (tensor - base for tensor in tensors)
    weights = each(weight, tensors)
    t = 0.5 if abs(sum(weights)) < _LEAST_SUM else weights[1] / sum(weights)
    dim = None if nuslerp_flatten or start.dim() == 0 else 0 if nuslerp_row_wise else -1
    first, second = _arc(_cosine(start, end, dim), t, _NUSLERP_LINE)
    merged = (start * first).add_(end * second)
    return merged if base is None else merged.add_(base)


def _cosine(start: torch.Tensor, end: torch.Tensor, dim: int | None) -> torch.Tensor:
    """Return cos θ of whole tensors or of the vectors along a dimension, which is kept; 0 where one is nought."""
    if dim is None:
        products = gram([start, end]).to(start.device)
        product, norms = products[0, 1], products.diagonal().prod().sqrt()
    else:
        product = torch.linalg.vecdot(start, end, dim=dim).unsqueeze(dim)
        norms = torch.linalg.vector_norm(start, dim=dim, keepdim=True)
        norms = norms * torch.linalg.vector_norm(end, dim=dim, keepdim=True)
    return torch.where(norms > 0, product / norms, 0.0).clamp(-1, 1)


def _arc(cosine: torch.Tensor, t: float, line: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the two coefficients, of the cosines' shape; beyond `line`, those of linear interpolation."""
    straight = cosine.abs() > line
    theta = torch.acos(torch.where(straight, 0.0, cosine))
    sine = torch.sin(theta)
    first = torch.where(straight, 1 - t, torch.sin((1 - t) * theta) / sine)
    second = torch.where(straight, t, torch.sin(t * theta) / sine)
    return first.float(), second.float()
