"""Kept entries of a delta at 16 bits."""

import torch

from impart_core.base.errors import TensorValueError


def to_half(values: torch.Tensor, name: str) -> torch.Tensor:
    """Return float32 values in float16, same shape, on the CPU.

    Raises:
        TensorValueError: naming the tensor, when a value is beyond float16.
    """
    require_half(values, name)
    return values.cpu().half()


def require_half(values: torch.Tensor, name: str) -> None:
    """Refuse values of any floating dtype that are beyond float16; error as for `to_half`."""
    if not bool(torch.isfinite(values.half()).all()):
        raise TensorValueError(
            f"The delta of {name!r} reaches {values.abs().max():g}, beyond the {torch.finfo(torch.float16).max:g} "
            "that its values are stored up to. Check that the base is the right one, or use method 'impart'."
        )
