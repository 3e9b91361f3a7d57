"""RAM: average where several models changed an entry, keep what one alone changed (arXiv 2601.13572)."""

from typing import Annotated

import torch
from pydantic import Field

from impart_core.merging.blocks import blocks
from impart_core.merging.method import Tensors, merge_method

Bound = Annotated[float, Field(ge=0)]


@merge_method("ram", "Reinforced Agent Merging", "arXiv 2601.13572", entrywise=True)
def ram(deltas: Tensors, *, epsilon: Bound = 1e-5) -> torch.Tensor:
    """Return, entry by entry, the mean of ΔW_i over the models that changed it.

    Args:
        deltas: ΔW_i, float32, all of one shape.
        epsilon: a model changed an entry if |ΔW_i| is more.
    """
    return _overlaid(deltas, [1.0] * len(deltas), epsilon)


@merge_method("ramplus_tl", "Reinforced Agent Merging Plus, tensor-local", "arXiv 2601.13572")
def ramplus_tl(deltas: Tensors, *, r: float = 0.1, alpha: Bound = 0.2, epsilon: Bound = 1e-5) -> torch.Tensor:
    """Return RAM's, with what a model alone changed times λ_i = 1 + r·min(α, ρ_i).

    ρ_i is the number of entries that the model shares with others over the number that it alone changed: so it makes
    up for what averaging takes away.

    Args:
        deltas: ΔW_i, float32, all of one shape.
        r: how much is made up for.
        alpha: α, the largest ratio that counts.
        epsilon: a model changed an entry if |ΔW_i| is more.
    """
    shared, alone = [0] * len(deltas), [0] * len(deltas)
    for block in blocks(deltas[0]):
        changed = [delta.reshape(-1)[block].abs() > epsilon for delta in deltas]
        models = _count(changed)
        for model, own in enumerate(changed):
            alone[model] += int((own & (models == 1)).sum())
            shared[model] += int((own & (models > 1)).sum())
    ratios = [many / few if few else alpha * (many > 0) for many, few in zip(shared, alone, strict=True)]
    return _overlaid(deltas, [1 + r * min(alpha, ratio) for ratio in ratios], epsilon)


def _overlaid(deltas: Tensors, factors: list[float], epsilon: float) -> torch.Tensor:
    """Return the mean over the models that changed an entry; what one alone changed, times its factor."""
    merged = torch.empty_like(deltas[0], memory_format=torch.contiguous_format)
    for block in blocks(deltas[0]):
        parts = [delta.reshape(-1)[block] for delta in deltas]
        changed = [part.abs() > epsilon for part in parts]
        models = _count(changed)
        mean, own = torch.zeros_like(parts[0]), torch.zeros_like(parts[0])
        for part, where, factor in zip(parts, changed, factors, strict=True):
            values = part * where
            mean.add_(values)
            own.add_(values, alpha=factor)
        merged.view(-1)[block] = torch.where(models == 1, own, mean.div_(models.clamp(min=1)))
    return merged


def _count(changed: list[torch.Tensor]) -> torch.Tensor:
    models = changed[0].int()
    for own in changed[1:]:
        models.add_(own)
    return models
