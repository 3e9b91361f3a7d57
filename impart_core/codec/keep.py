"""The `keep` policy: a delta stored whole at 16 bits, for norms, biases, embeddings and head (docs/format.md)."""

import torch

from impart_core.base.errors import TensorValueError


def encode_keep(delta: torch.Tensor, name: str) -> torch.Tensor:
    """Return a float32 delta at 16 bits, same shape: float16, or bfloat16 where float16 would overflow.

    Raises:
        TensorValueError: the delta overflows bfloat16 too.
    """
    for dtype in (torch.float16, torch.bfloat16):
        stored = delta.to(dtype)
        if bool(torch.isfinite(stored).all()):
            return stored
    raise TensorValueError(f"The delta of {name!r} reaches {delta.abs().max():g}, too large for 16 bits.")
