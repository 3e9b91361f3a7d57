"""DELLA: drop entries at random, small ones more often than large ones (Deep et al. 2024, arXiv 2406.11617, §3.1)."""

from typing import Annotated

import torch
from pydantic import Field

from impart_core.base.errors import ConfigError
from impart_core.merging.blocks import Entries
from impart_core.merging.method import Draws, Each, EachShare, Tensors, each, merge_method
from impart_core.merging.sparse import Rescale, rescaled, sparse
from impart_core.merging.sums import INT8_MASK, elected_sum, plain_sum

Epsilon = Annotated[Each, Field(ge=0, lt=0.5)]


@merge_method("della_linear", "DELLA, linear", "arXiv 2406.11617", ignored=(INT8_MASK,))
def della_linear(
    deltas: Tensors,
    *,
    draws: Draws,
    weight: Each,
    density: EachShare = 1.0,
    epsilon: Epsilon = 0.15,
    normalize: bool = False,
    rescale: Rescale = True,
    lambda_: float = 1.0,
) -> torch.Tensor:
    """Return λ·Σ w_i·x_i; x_i is ΔW_i with entries dropped at random, by their rank in the row.

    Args:
        deltas: ΔW_i, float32, all of one shape; rows lie along the last dimension.
        draws: the random numbers.
        weight: w_i, one for each model.
        density: d_i, the mean probability with which an entry is kept; 1 keeps all.
        epsilon: ε_i: from d_i − ε_i for a row's smallest entry to d_i + ε_i for its largest, in even steps.
        normalize: whether the sum is divided by Σ w_i, unless that is nought.
        rescale: how kept entries are scaled (see `Rescale`); the paper divides them by their probability.
        lambda_: λ, the scaling term.

    Raises:
        ConfigError: d_i − ε_i or d_i + ε_i is not between 0 and 1.
    """
    entries = _dropped(deltas, density, epsilon, rescale, draws)
    return plain_sum(deltas[0], entries, each(weight, deltas), normalize=normalize, lambda_=lambda_)


@merge_method("della", "DELLA", "arXiv 2406.11617", ignored=(INT8_MASK,))
def della(
    deltas: Tensors,
    *,
    draws: Draws,
    weight: Each,
    density: EachShare = 1.0,
    epsilon: Epsilon = 0.15,
    normalize: bool = True,
    rescale: Rescale = True,
    lambda_: float = 1.0,
) -> torch.Tensor:
    """Return λ times the mean of the w_i·x_i that agree with the sign of Σ w_i·x_i; x_i as in `della_linear`.

    Args:
        deltas: ΔW_i, float32, all of one shape; rows lie along the last dimension.
        draws: the random numbers.
        weight: w_i, one for each model.
        density: d_i, the mean probability with which an entry is kept; 1 keeps all.
        epsilon: ε_i: from d_i − ε_i for a row's smallest entry to d_i + ε_i for its largest, in even steps.
        normalize: whether the sum is divided by Σ w_i over the models that agree.
        rescale: how kept entries are scaled (see `Rescale`); the paper divides them by their probability.
        lambda_: λ, the scaling term.

    Raises:
        ConfigError: d_i − ε_i or d_i + ε_i is not between 0 and 1.
    """
    entries = _dropped(deltas, density, epsilon, rescale, draws)
    return elected_sum(deltas[0], entries, each(weight, deltas), normalize=normalize).mul_(lambda_)


def _dropped(deltas: Tensors, density: Each, epsilon: Each, rescale: Rescale, draws: Draws) -> list[Entries]:
    """Return what gives the entries of each delta, with some of them dropped."""

    def dropped(model: int, delta: torch.Tensor, mean: float, spread: float) -> Entries:
        probability = _probabilities(delta, mean, spread)
        keep = draws.uniform(model, delta.shape).to(delta.device) < probability
        if rescale == "expectation":
            return sparse(delta, keep / probability)
        entries = sparse(delta, keep)
        return rescaled(entries, delta) if rescale else entries

    settings = zip(deltas, each(density, deltas), each(epsilon, deltas), strict=True)
    return [dropped(model, *setting) for model, setting in enumerate(settings)]


def _probabilities(delta: torch.Tensor, mean: float, spread: float) -> torch.Tensor:
    """Return with which probability each entry is kept; of equal ones in a row, those that come first more often."""
    if mean < 1 and not 0 < mean - spread <= mean + spread < 1:
        raise ConfigError(
            f"density {mean:g} ± epsilon {spread:g} is not between 0 and 1. "
            f"Set epsilon below {min(mean, 1 - mean):g}, or another density."
        )
    if mean >= 1 or delta.dim() == 0 or delta.numel() == 0 or delta.shape[-1] == 1:
        return torch.full_like(delta, mean)
    steps = torch.linspace(mean + spread, mean - spread, delta.shape[-1], device=delta.device)
    order = delta.abs().argsort(dim=-1, descending=True, stable=True)
    return torch.empty_like(delta).scatter_(-1, order, steps.expand_as(delta))
