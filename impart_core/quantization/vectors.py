"""Quantised singular vectors: U and V by rank groups (paper §3.3).

The side that meets the inputs X is quantised first, with the Hessian of X; then the other, with the Hessian of what it
sees of them, (diag(σ)·V̂)·X with the V̂ that was stored.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from impart_core.codec.parts import Codes
from impart_core.quantization.cost import stream_bytes
from impart_core.quantization.curvature import Curvature, Inputs
from impart_core.quantization.grid import RowRange
from impart_core.quantization.groups import Groups
from impart_core.quantization.options import LadderOptions
from impart_core.quantization.solve import quantize_matrix
from impart_core.quantization.streams import check_matrices, layout_bytes, pack_matrices, unpack_matrices

IntArray = npt.NDArray[np.int64]
SIGMA, SIGMA_BYTES = torch.bfloat16, 2  # of singular values: far finer than what few bits make of their vectors


def vectors_bytes(kept_u: IntArray, kept_v: IntArray, options: LadderOptions) -> int:
    """Return the bytes of what `encode_vectors` returns, before its lossless stage makes codes smaller.

    Args:
        kept_u: kept entries of each vector of U, (K,).
        kept_v: likewise of V.
        options: how they are quantised.
    """
    spans = options.ladder.spans(len(kept_u))
    sides = ([int(side[span.rows].sum()) for span in spans] for side in (kept_u, kept_v))
    streams = sum(stream_bytes(spans, kept, options.group_size).total for kept in sides)
    return streams + layout_bytes(len(spans), 2, options.lossless)


def encode_vectors(
    u: torch.Tensor,
    v: torch.Tensor,
    weights: torch.Tensor,
    masks: tuple[torch.Tensor, torch.Tensor],
    inputs: Inputs | None,
    name: str,
    options: LadderOptions,
) -> Codes:
    """Return the stored parts of U and V.

    Args:
        u: left singular vectors as rows, (K, m); they go where the inputs' Hessian lies, where there is one.
        v: right singular vectors as rows, (K, n); likewise.
        weights: what the pairs u_k·v_kᵀ are multiplied by, float32, (K,).
        masks: which entries of u and of v are kept, bool.
        inputs: what calibration says; None: the first side is rounded to nearest, the other as for white inputs.
        name: the tensor.
        options: how.
    """
    ranges = options.ladder.spans(len(weights))
    device = inputs.hessian.device if inputs else u.device
    sides = {
        role: (vectors.to(device).float(), Groups(mask.to(device), ranges, options.group_size))
        for role, vectors, mask in zip("uv", (u, v), masks, strict=True)
    }
    first, second = "uv" if inputs and inputs.of_rows else "vu"
    met = inputs.curvature if inputs else None
    quantized = {first: quantize_matrix(*sides[first], met, name, solver=options.solver)}
    curvature = None
    if options.solver != "nearest":
        seen = quantized[first].values() * weights.to(device)[:, None]
        hessian = seen @ inputs.hessian @ seen.T if inputs else seen @ seen.T
        curvature = Curvature.of((hessian + hessian.T) / 2, name)
    quantized[second] = quantize_matrix(*sides[second], curvature, name, solver=options.solver, along_rows=True)
    return pack_matrices([quantized["u"], quantized["v"]], options.lossless)


def decode_vectors(
    codes: Codes, name: str, weights: torch.Tensor, masks: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return w_k û_k and v̂_k, float32, (K, m) and (K, n); arguments as for `encode_vectors`.

    Raises:
        CorruptArtifactError: the parts are not of such factors.
    """
    u, v = unpack_matrices(codes, name, masks)
    return u * weights[:, None], v


def check_vectors(codes: Codes, name: str, kept_u: IntArray, kept_v: IntArray) -> None:
    """Check that the parts can be decoded, without making the factors; counts as for `vectors_bytes`.

    Raises:
        CorruptArtifactError: the parts are not of such factors.
    """

    def within(kept: IntArray) -> Callable[[RowRange], int]:
        return lambda span: int(kept[span.rows].sum())

    check_matrices(codes, name, len(kept_u), [within(kept_u), within(kept_v)])
