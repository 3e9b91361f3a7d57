"""The delta: fine-tuned minus base, in float32."""

import torch

from impart_core.base.errors import TensorValueError


def extract_delta(base: torch.Tensor, finetuned: torch.Tensor, name: str) -> torch.Tensor:
    """Return ΔW = W_ft − W_base, zero where the base, cast to the fine-tuned dtype, is the fine-tuned value.

    A base in a wider dtype differs from a fine-tune that left it alone by rounding, which the cast at the end of a
    reconstruction does again.

    Args:
        base: the base's tensor, any floating dtype.
        finetuned: the fine-tuned tensor, same shape.
        name: the tensor's name, for the error.

    Returns:
        float32 tensor of the same shape.

    Raises:
        TensorValueError: either tensor holds NaN or infinity, or the delta is beyond float32.
    """
    delta = finetuned.to(torch.float32, copy=True).sub_(base)  # in place: no float32 copy of either side
    if not bool(torch.isfinite(delta).all()):  # NaN and infinity of either side reach the delta
        require_finite(base, name, "base")
        require_finite(finetuned, name, "fine-tuned")
        raise TensorValueError(f"The delta of {name!r} is beyond float32. One of the checkpoints is damaged.")
    if base.dtype != finetuned.dtype:
        delta[base.to(finetuned.dtype) == finetuned] = 0.0
    return delta


def add_delta(base: torch.Tensor, delta: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """Return W_base + ΔŴ, added in float32 and cast once; the base cast where the delta is zero (None).

    What is beyond the dtype becomes its largest number: a code's error is no reason for infinity, of which a model
    makes NaN.
    """
    if delta is None:
        return base.to(dtype)
    most = min(torch.finfo(dtype).max, torch.finfo(torch.float32).max)
    return (base.float() + delta).clamp_(-most, most).to(dtype)


def require_finite(tensor: torch.Tensor, name: str, side: str) -> None:
    """Check that a floating tensor of one side's checkpoint holds numbers.

    Raises:
        TensorValueError: it holds NaN or infinity.
    """
    if not bool(torch.isfinite(tensor).all()):
        raise TensorValueError(
            f"Tensor {name!r} of the {side} checkpoint holds NaN or infinity. A delta of it would be "
            "meaningless: repair or re-export that checkpoint, or store it with method lossless."
        )
