"""What tests ask about codes, and the factors that they are made of."""

from dataclasses import replace
from hashlib import sha256

import numpy as np
import torch

from impart_core.codec.half import decode_half, encode_half
from impart_core.codec.mask import UInt16Array, keep_probability, mask_from_words, mask_key, mask_words
from impart_core.codec.parts import Codes
from impart_core.delta.factors import Factors
from impart_core.methods.base import Projection
from impart_core.quantization.curvature import Inputs
from impart_core.quantization.kfac import Sensitivity
from impart_core.quantization.streams import unpack_matrices
from tests.impart_core.quantization.plain import output_error
from tests.impart_core.quantization.samples import hessian_of


def at_16_bits(values: torch.Tensor) -> torch.Tensor:
    """Return what is decoded of values that are stored at 16 bits."""
    codes = encode_half(values, "values", "w")
    return decode_half(codes["values"], codes, "w")


def same(one: Codes, other: Codes) -> bool:
    """Return whether two sets of codes are equal, part by part."""
    return one.keys() == other.keys() and all(torch.equal(one[part], other[part]) for part in one)


def digest(codes: Codes) -> str:
    """Return the first 16 digits of the SHA-256 of all parts, by name."""
    parts = (code.contiguous().view(torch.uint8).numpy().tobytes() for _, code in sorted(codes.items()))
    return sha256(b"".join(parts)).hexdigest()[:16]


def keep_of(codes: Codes) -> UInt16Array:
    """Return the keep code of each vector pair as masks take it; ImPart-Qt stores steps of 1/256, others keep all."""
    part = next((part for part in codes if part.startswith("keep")), None)
    if part is None:
        return np.full(len(codes["sigma"]), 65535, np.uint16)
    keep = codes[part].numpy()
    return keep if keep.dtype == np.uint16 else keep.astype(np.uint16) * 256 + 255


def entry_mask(keep: int, shape: tuple[int, int], seed: int = 0, name: str = "w") -> torch.Tensor:
    """Return which entries of a delta a keep code keeps, bool, (m, n), from all words at once."""
    words = mask_words(mask_key(seed, name, "delta"), shape[1], shape[0])
    return torch.from_numpy(mask_from_words(words, np.full(shape[0], keep, np.uint16)))


def vector_masks(codes: Codes, shape: tuple[int, int], seed: int = 0, name: str = "w") -> list[torch.Tensor]:
    """Return which entries of U and of V codes keep, bool, (K, m) and (K, n), from all words at once."""
    keep, masks = keep_of(codes), []
    for role, side in zip("uv", shape, strict=True):
        words = mask_words(mask_key(seed, name, role), side, len(keep))
        lines = np.arange(len(keep)) // (64 if f"keep_shared_{role}" in codes else 1)
        masks.append(torch.from_numpy(mask_from_words(words[lines], keep)))
    return masks


def stored_vectors(codes: Codes, masks: list[torch.Tensor], name: str = "w") -> list[torch.Tensor]:
    """Return U and V as they are stored, before rescaling, float32, (K, m) and (K, n)."""
    if "layout" in codes:
        return unpack_matrices(codes, name, masks)
    vectors = [torch.zeros(mask.shape) for mask in masks]
    for role, mask, side in zip("uv", masks, vectors, strict=True):
        side[mask] = codes[role].float().flatten()
    return vectors


def sum_of_pairs(codes: Codes, vectors: list[torch.Tensor]) -> torch.Tensor:
    """Return Σ_k σ_k·u_k·v_kᵀ with the stored σ, u and v rescaled by the keep probability, float64, (m, n)."""
    keep = torch.from_numpy(keep_probability(keep_of(codes)))[:, None]
    u, v = (side.double() / keep for side in vectors)
    return (u * codes["sigma"].double()[:, None]).T @ v


def no_delta() -> torch.Tensor:
    """Stand in for a delta that is not to be asked for."""
    raise AssertionError("a method that works on the factors asked for the delta")


def no_factors() -> Factors:
    """Stand in for factors that are not to be asked for."""
    raise AssertionError("a method that works on the delta asked for its factors")


def arithmetic(rows: torch.Tensor, columns: int) -> torch.Tensor:
    """Return entries from integer arithmetic alone, the same bits on every machine, of rows (m, 1) as (m, columns)."""
    return ((37 * rows + 101 * torch.arange(columns)) % 97 - 48).float() / 256


def arithmetic_factors(m: int, n: int) -> Factors:
    """Return vectors and singular values of such entries."""
    pairs = torch.arange(min(m, n))[:, None]
    return Factors(u=arithmetic(pairs, m), sigma=1 / (1 + pairs[:, 0].float()), v=arithmetic(pairs, n))


def calibrated(delta: torch.Tensor, name: str = "w", *, of_rows: bool = False) -> Projection:
    """Return the projection of a delta whose inputs, of its columns or of its rows, have much in common.

    So have gradients, of the other side.
    """
    rows, columns = (hessian_of("correlated", side) for side in delta.shape)
    inputs = Inputs(rows if of_rows else columns, of_rows, name)
    return replace(Projection.of(delta, name), inputs=inputs, sensitivity=Sensitivity(rows, columns))


def outputs_differ(projection: Projection, decoded: torch.Tensor) -> float:
    """Return ½·tr(Δ·H·Δᵀ) of what a calibrated projection was decoded to."""
    assert projection.inputs is not None
    found = decoded - projection.delta()
    change = found.T if projection.inputs.of_rows else found
    return output_error(change, torch.zeros(1), projection.inputs.hessian)
