"""NearSwap: take over what is near the base already (A. Chemonaut's QuartetAnemoi-70B-t0.0001, as in mergekit)."""

from typing import Annotated

import torch
from pydantic import Field

from impart_core.merging.method import Tensors, merge_method

_SOURCE = "https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001"
_LEAST = 1e-6  # a smaller |ΔW| counts as this


@merge_method("nearswap", "NearSwap", _SOURCE, models=(1, 1), entrywise=True)
def nearswap(deltas: Tensors, *, t: Annotated[float, Field(ge=0)]) -> torch.Tensor:
    """Return min(1, t/|ΔW|)·ΔW, entry by entry.

    Args:
        deltas: ΔW alone, float32.
        t: the difference up to which the model's own value is taken.
    """
    share = deltas[0].abs().clamp_(min=_LEAST).reciprocal_().mul_(t).clamp_(max=1)
    return share.mul_(deltas[0])
