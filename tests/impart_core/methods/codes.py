"""What tests of every method ask about codes, and the deltas that are hard to compress."""

from dataclasses import replace
from hashlib import sha256

import numpy as np
import torch

from impart_core.codec.mask import UInt16Array
from impart_core.codec.parts import Codes
from impart_core.methods.base import Projection
from impart_core.quantize.curvature import Inputs
from tests.impart_core.quantize.plain import output_error
from tests.impart_core.quantize.samples import hessian_of


def nbytes(codes: Codes) -> int:
    """Return the bytes of all parts."""
    return sum(code.numel() * code.element_size() for code in codes.values())


def same(one: Codes, other: Codes) -> bool:
    """Return whether two sets of codes are equal, part by part."""
    return one.keys() == other.keys() and all(torch.equal(one[part], other[part]) for part in one)


def digest(codes: Codes) -> str:
    """Return the first 16 digits of the SHA-256 of all parts, by name."""
    parts = (code.contiguous().view(torch.uint8).numpy().tobytes() for _, code in sorted(codes.items()))
    return sha256(b"".join(parts)).hexdigest()[:16]


def keep_of(codes: Codes) -> UInt16Array:
    """Return ImPart-Qt's keep codes, in steps of 1/256, as masks take them, in steps of 1/65536."""
    return np.asarray([256 * int(code) + 255 for code in codes["keep"]], dtype=np.uint16)


def one_entry(m: int, n: int, at: int, value: float = -0.25) -> torch.Tensor:
    """Return a delta of shape (m, n) that is zero but for the entry at this position of the flattened matrix."""
    delta = torch.zeros(m * n)
    delta[at % (m * n)] = value
    return delta.reshape(m, n)


def calibrated(delta: torch.Tensor, name: str = "w", *, of_rows: bool = False) -> Projection:
    """Return the projection of a delta whose inputs, of its columns or of its rows, have much in common."""
    side = delta.shape[0 if of_rows else 1]
    return replace(Projection.of(delta, name), inputs=Inputs(hessian_of("correlated", side), of_rows, name))


def outputs_differ(projection: Projection, decoded: torch.Tensor) -> float:
    """Return ½·tr(Δ·H·Δᵀ) of what a calibrated projection was decoded to."""
    assert projection.inputs is not None
    found = decoded - projection.delta()
    change = found.T if projection.inputs.of_rows else found
    return output_error(change, torch.zeros(1), projection.inputs.hessian)
