"""DARE: drop entries of each delta at random and rescale the others (Yu et al. 2024, arXiv 2311.03099, §3)."""

import torch

from impart_core.merging.blocks import Entries
from impart_core.merging.method import Draws, Each, EachShare, Tensors, each, merge_method
from impart_core.merging.sparse import Rescale, rescaled, sparse
from impart_core.merging.sums import INT8_MASK, elected_sum, plain_sum


@merge_method("dare_linear", "DARE, linear", "arXiv 2311.03099", ignored=(INT8_MASK,))
def dare_linear(
    deltas: Tensors,
    *,
    draws: Draws,
    weight: Each,
    density: EachShare = 1.0,
    normalize: bool = False,
    rescale: Rescale = True,
    lambda_: float = 1.0,
) -> torch.Tensor:
    """Return λ·Σ w_i·x_i; x_i is ΔW_i with entries dropped at random.

    Args:
        deltas: ΔW_i, float32, all of one shape.
        draws: the random numbers.
        weight: w_i, one for each model.
        density: d_i, the probability with which an entry is kept.
        normalize: whether the sum is divided by Σ w_i, unless that is nought.
        rescale: how kept entries are scaled (see `Rescale`); the paper divides them by d_i.
        lambda_: λ, the scaling term.
    """
    entries = _dropped(deltas, density, rescale, draws)
    return plain_sum(deltas[0], entries, each(weight, deltas), normalize=normalize, lambda_=lambda_)


@merge_method("dare_ties", "DARE with sign election", "arXiv 2311.03099", ignored=(INT8_MASK,))
def dare_ties(
    deltas: Tensors,
    *,
    draws: Draws,
    weight: Each,
    density: EachShare = 1.0,
    normalize: bool = False,
    rescale: Rescale = True,
    lambda_: float = 1.0,
) -> torch.Tensor:
    """Return λ·Σ w_i·x_i over the models that agree with its sign; x_i is ΔW_i with entries dropped at random.

    Args:
        deltas: ΔW_i, float32, all of one shape.
        draws: the random numbers.
        weight: w_i, one for each model.
        density: d_i, the probability with which an entry is kept.
        normalize: whether the sum is divided by Σ w_i over the models that agree.
        rescale: how kept entries are scaled (see `Rescale`); the paper divides them by d_i.
        lambda_: λ, the scaling term.
    """
    entries = _dropped(deltas, density, rescale, draws)
    return elected_sum(deltas[0], entries, each(weight, deltas), normalize=normalize).mul_(lambda_)


def _dropped(deltas: Tensors, density: Each, rescale: Rescale, draws: Draws) -> list[Entries]:
    """Return what gives the entries of each delta, with some of them dropped."""

    def dropped(model: int, delta: torch.Tensor, probability: float) -> Entries:
        keep = (draws.uniform(model, delta.shape) < probability).to(delta.device)
        entries = sparse(delta, keep)
        if rescale == "expectation":
            return lambda block: entries(block).div_(probability)
        return rescaled(entries, delta) if rescale else entries

    return [dropped(i, *both) for i, both in enumerate(zip(deltas, each(density, deltas), strict=True))]
