"""The two sums that the task-arithmetic family ends with: a plain one, and one of the entries that agree in sign."""

from collections.abc import Sequence

import torch

from impart_core.merging.blocks import Entries, blocks
from impart_core.merging.method import LEAST_SUM

# What files of mergekit may give any method of this family, and that changes nothing.
INT8_MASK = "int8_mask"


def plain_sum(
    like: torch.Tensor, entries: Sequence[Entries], weights: Sequence[float], *, normalize: bool, lambda_: float
) -> torch.Tensor:
    """Return λ·Σ w_i·x_i, float32, divided by Σ w_i where that is asked for and not nought.

    Args:
        like: a tensor of the shape and on the device of the result.
        entries: x_i.
        weights: w_i.
        normalize: whether to divide.
        lambda_: λ.
    """
    total = sum(weights)
    divides = normalize and abs(total) >= LEAST_SUM
    merged = torch.empty(like.shape, dtype=torch.float32, device=like.device)
    for block in blocks(like):
        out = merged.view(-1)[block]
        torch.mul(entries[0](block), weights[0], out=out)
        for others, weight in zip(entries[1:], weights[1:], strict=True):
            out.add_(others(block), alpha=weight)
        # Not folded into the weights: what these give exactly, as halves do, is then rounded once.
        if divides:
            out.div_(total)
        if lambda_ != 1:
            out.mul_(lambda_)
    return merged


def elected_sum(
    like: torch.Tensor,
    entries: Sequence[Entries],
    weights: Sequence[float],
    *,
    normalize: bool,
    votes: Sequence[float] | None = None,
    on_draw: float = 1.0,
) -> torch.Tensor:
    """Return Σ w_i·x_i over the models that agree with the elected sign, entry by entry, float32 (TIES, §3).

    The sign of Σ v_i·x_i is elected; a model agrees where v_i·x_i has this sign.

    Args:
        like: a tensor of the shape and on the device of the result.
        entries: x_i.
        weights: w_i.
        normalize: whether to divide by Σ w_i over those that agree, where that is not nought.
        votes: v_i; None: w_i.
        on_draw: the sign that is elected where Σ v_i·x_i is nought, 1 or −1.
    """
    merged = torch.zeros(like.shape, dtype=torch.float32, device=like.device)
    votes = weights if votes is None else votes
    for block in blocks(like):
        values = [of_model(block) for of_model in entries]
        total = _sum_of(values, votes)
        elected = (total.ge_(0) if on_draw > 0 else total.gt_(0)).mul_(2).sub_(1)
        out, divisor = merged.view(-1)[block], torch.zeros_like(elected)
        for value, weight, vote in zip(values, weights, votes, strict=True):
            agree = torch.mul(value, elected)
            agree = agree.gt_(0) if vote > 0 else agree.lt_(0) if vote < 0 else agree.zero_()
            out.addcmul_(value, agree, value=weight)
            divisor.add_(agree, alpha=weight)
        if normalize:
            out.div_(divisor.masked_fill_(divisor == 0, 1.0))
    return merged


def majority_sign(like: torch.Tensor, entries: Sequence[Entries], votes: Sequence[float]) -> float:
    """Return the sign that more entries of Σ v_i·x_i have, 1 or −1; −1 where as many have the one as the other."""
    surplus = sum(int(_sum_of([of(block) for of in entries], votes).sign_().sum()) for block in blocks(like))
    return 1.0 if surplus > 0 else -1.0


def _sum_of(values: Sequence[torch.Tensor], votes: Sequence[float]) -> torch.Tensor:
    # Products are rounded before they are added (`add_(value, alpha=vote)` does not): equal ones cancel to nought.
    total = values[0] * votes[0]
    for value, vote in zip(values[1:], votes[1:], strict=True):
        total.add_(value if vote == 1 else value * vote)
    return total
