"""Model Breadcrumbs: drop both tails of each delta (Davari & Belilovsky 2023, arXiv 2312.06795, §3.1)."""

from typing import Annotated

import torch
from pydantic import Field

from impart_core.merging.blocks import Entries
from impart_core.merging.method import Each, EachShare, Tensors, each, merge_method
from impart_core.merging.selection import largest
from impart_core.merging.sparse import rescaled
from impart_core.merging.sums import INT8_MASK, elected_sum, plain_sum

Gamma = Annotated[Each, Field(ge=0, lt=1)]


@merge_method("breadcrumbs", "Model Breadcrumbs", "arXiv 2312.06795", ignored=(INT8_MASK,))
def breadcrumbs(
    deltas: Tensors,
    *,
    weight: Each,
    density: EachShare = 1.0,
    gamma: Gamma = 0.01,
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
) -> torch.Tensor:
    """Return λ·Σ w_i·x_i; x_i is ΔW_i without its largest and smallest entries.

    Args:
        deltas: ΔW_i, float32, all of one shape.
        weight: w_i, one for each model.
        density: d_i, the share of entries that is kept; 1 keeps all.
        gamma: γ_i, the share of entries that is dropped since they are the largest; less where d_i needs them.
        normalize: whether the sum is divided by Σ w_i, unless that is nought.
        rescale: whether the kept entries are scaled so as to keep the L1 norm.
        lambda_: λ, the scaling term.
    """
    entries = _masked(deltas, density, gamma, rescale)
    return plain_sum(deltas[0], entries, each(weight, deltas), normalize=normalize, lambda_=lambda_)


@merge_method("breadcrumbs_ties", "Model Breadcrumbs with sign election", "arXiv 2312.06795", ignored=(INT8_MASK,))
def breadcrumbs_ties(
    deltas: Tensors,
    *,
    weight: Each,
    density: EachShare = 1.0,
    gamma: Gamma = 0.01,
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
) -> torch.Tensor:
    """Return λ·Σ w_i·x_i over the models that agree with its sign; x_i is ΔW_i without its two tails.

    Args:
        deltas: ΔW_i, float32, all of one shape.
        weight: w_i, one for each model.
        density: d_i, the share of entries that is kept; 1 keeps all.
        gamma: γ_i, the share of entries that is dropped since they are the largest; less where d_i needs them.
        normalize: whether the sum is divided by Σ w_i over the models that agree.
        rescale: whether the kept entries are scaled so as to keep the L1 norm.
        lambda_: λ, the scaling term.
    """
    entries = _masked(deltas, density, gamma, rescale)
    return elected_sum(deltas[0], entries, each(weight, deltas), normalize=normalize).mul_(lambda_)


def _masked(deltas: Tensors, density: Each, gamma: Each, rescale: bool) -> list[Entries]:
    """Return what gives the entries of each delta, without those of its two tails."""

    def masked(delta: torch.Tensor, kept: float, dropped: float) -> Entries:
        size = delta.numel()
        count = int(kept * size)
        above = 0 if kept >= 1 else min(int(dropped * size), size - count)
        tail, rest, flat = largest(delta, above), largest(delta, above + count), delta.reshape(-1)

        def entries(block: slice) -> torch.Tensor:
            part = flat[block]
            return rest.mask(part, block.start).sub_(tail.mask(part, block.start)).mul_(part)

        return rescaled(entries, delta) if rescale else entries

    settings = zip(deltas, each(density, deltas), each(gamma, deltas), strict=True)
    return [masked(*setting) for setting in settings]
