"""Leading singular triplets from the Gram matrix AᵀA: one eigenproblem of the smaller side."""

import torch

from impart_core.delta.factors import Leading
from impart_core.delta.krylov import Needed, guard_of, refine

_STRIP = 512  # columns of the Gram matrix that are computed at a time; only its upper half is


def gram_triplets(matrix: torch.Tensor, needed: Needed, dtype: torch.dtype) -> Leading:
    """Return the leading singular triplets of a float32 matrix (m, n), m ≥ n.

    Squaring costs half of the digits. With float32 the vectors span the right space down to about 1e-2·σ₁, and a
    Rayleigh–Ritz step in float64 within that space makes them right; with float64 they are right down to 1e-5·σ₁.

    Args:
        matrix: (m, n).
        needed: how many triplets are wanted, by the singular values.
        dtype: of the Gram matrix and its eigenproblem: float32, in half of the time or less, or float64.
    """
    theta, vectors = torch.linalg.eigh(_gram(matrix.to(dtype)))
    sigma = theta.flip(0).clamp_min(0).sqrt()
    wanted = needed(sigma.double().cpu().numpy())
    v = vectors[:, -(wanted + guard_of(wanted)) :].flip(1).float()
    return refine(v, matrix @ v, wanted, needed)


def _gram(matrix: torch.Tensor) -> torch.Tensor:
    n = matrix.shape[1]
    product = matrix.new_empty(n, n)
    for start in range(0, n, _STRIP):
        stop = min(start + _STRIP, n)
        product[start:stop, start:] = matrix[:, start:stop].T @ matrix[:, start:]
        product[stop:, start:stop] = product[start:stop, stop:].T
    return product
