"""Values of a delta at 16 bits: float16, times a power of two that puts the largest where float16 is at its best.

Without that, values below 6e-5 lose bits in float16, those below 3e-8 everything, and those above 65504 are infinite.
"""

import math

import torch

from impart_core.base.errors import CorruptArtifactError, TensorValueError
from impart_core.codec.parts import Codes, read_part

EXPONENT = "exponent"  # the part that holds e, where it is not 0: values are those that are stored times 2^e
EXPONENT_BYTES = 1
_LARGEST = 14  # the largest value is stored between 2^14 and 2^15
_LOWEST = -126  # so that 2^-e and 2^e are float32


def half_exponent(values: torch.Tensor, name: str) -> int:
    """Return e for float32 values: 0 where the largest is from 1 to what float16 holds, or there is none.

    Raises:
        TensorValueError: naming the tensor, when a value is NaN or infinite.
    """
    largest = float(values.abs().max()) if values.numel() else 0.0
    if not math.isfinite(largest):
        raise TensorValueError(f"The delta of {name!r} holds NaN or infinity. Check both checkpoints.")
    if largest == 0.0 or 1.0 <= largest <= torch.finfo(torch.float16).max:
        return 0
    return max(_LOWEST, math.frexp(largest)[1] - 1 - _LARGEST)


def exponent_part(exponent: int) -> Codes:
    """Return the part that holds an exponent; none where it is 0."""
    return {EXPONENT: torch.tensor([exponent], dtype=torch.int8)} if exponent else {}


def read_exponent(codes: Codes, name: str) -> int:
    """Return the exponent of a tensor's codes.

    Raises:
        CorruptArtifactError: it is none that is written.
    """
    exponent = int(read_part(codes, name, EXPONENT, torch.int8, 1)) if EXPONENT in codes else 0
    if exponent < _LOWEST or exponent > 127 - _LARGEST:
        raise CorruptArtifactError(f"The codes of {name!r} have the exponent {exponent}, which is never written.")
    return exponent


def encode_half(values: torch.Tensor, part: str, name: str) -> Codes:
    """Return float32 values as a part in float16, same shape, on the CPU, and their exponent; errors as above."""
    exponent = half_exponent(values, name)
    return {part: (values.cpu() * 2.0**-exponent).half(), **exponent_part(exponent)}


def scaled_half(codes: Codes, part: str, name: str, gains: torch.Tensor) -> Codes:
    """Return codes whose values in a part are times gains, one or one for each, in as many bytes.

    Raises:
        CorruptArtifactError: the exponent is none that is written.
    """
    values = decode_half(codes[part], codes, name) * gains
    largest = float(values.abs().max()) if values.numel() else 0.0
    exponent = max(_LOWEST, math.frexp(largest)[1] - 1 - _LARGEST) if EXPONENT in codes else 0
    most = torch.finfo(torch.float16).max
    found = {**codes, part: (values * 2.0**-exponent).clamp_(-most, most).half()}
    return {**found, EXPONENT: torch.tensor([exponent], dtype=torch.int8)} if EXPONENT in codes else found


def decode_half(values: torch.Tensor, codes: Codes, name: str) -> torch.Tensor:
    """Return the values of a part, float32, by the exponent in the same codes."""
    return values.float().mul_(2.0 ** read_exponent(codes, name))
