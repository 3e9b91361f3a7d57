"""Leading singular triplets by a randomised range finder: a block Krylov space, grown until it has converged.

Block Lanczos with full reorthogonalisation on AᵀA from a seeded random block (Halko, Martinsson, Tropp 2011;
Musco, Musco 2015). It costs products with A alone, and needs no guess of how fast the spectrum falls: the
residuals of the Ritz vectors say when to stop.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from impart_core.delta.factors import Leading

FloatArray = npt.NDArray[np.float64]
# From the leading singular values (falling), how many triplets are wanted; all of them: there may be more.
Needed = Callable[[FloatArray], int]

_BLOCK = 32  # narrower converges in fewer products, wider multiplies faster; measured best from 256 to 4096 columns
_GROWTH = 1.2  # of the space between two tests of convergence, each of which costs a small eigenproblem
_WIDTH_PER_TRIPLET = 2.0  # the least that a space has been seen to need, whatever the spectrum
_TOLERANCE = 2e-6  # relative, of singular values; well below the 1e-5 that is checked at the end
_MOST_PASSES, _LITTLE_TAKEN = 4, 0.7
_STRIP = 1024  # rows that are held in float64 at a time
_SEED = 0


def krylov_triplets(matrix: torch.Tensor, needed: Needed, limit: int) -> Leading | None:
    """Return the leading singular triplets of a float32 matrix, or None where `limit` columns do not suffice.

    Args:
        matrix: (m, n) with m ≥ n.
        needed: how many triplets are wanted, by the singular values.
        limit: the most columns that the Krylov space may have.
    """
    m, n = matrix.shape
    columns = limit // _BLOCK * _BLOCK
    q, p = (torch.empty(side, columns, device=matrix.device) for side in (n, m))
    h = torch.zeros(columns, columns, device=matrix.device)
    start = torch.randn(n, _BLOCK, generator=torch.Generator().manual_seed(_SEED)).to(matrix.device)
    block, done, test = torch.linalg.qr(start)[0], 0, 4 * _BLOCK
    while done + _BLOCK <= columns:
        new = slice(done, done + _BLOCK)
        q[:, new] = block
        p[:, new] = matrix @ block
        done += _BLOCK
        h[:done, new] = p[:, :done].T @ p[:, new]
        h[new, :done] = h[:done, new].T
        block, beyond = _next_block(q[:, :done], matrix.T @ p[:, new])
        if done >= test or done + _BLOCK > columns:
            theta, ritz = torch.linalg.eigh(h[:done, :done])
            theta, ritz = theta.flip(0).clamp_min(0), ritz.flip(1)
            wanted = needed(theta.sqrt().double().cpu().numpy())
            kept = wanted + guard_of(wanted)
            if kept < done and _converged(theta, beyond @ ritz[-_BLOCK:, :wanted], kept):
                return refine(q[:, :done] @ ritz[:, :kept], p[:, :done] @ ritz[:, :kept], wanted, needed)
            if _WIDTH_PER_TRIPLET * wanted > columns:
                return None  # it would not be over in time
            test = int(_GROWTH * done)
    return None


def guard_of(wanted: int) -> int:
    """Return how many triplets past the wanted ones are carried along, to keep those at the edge apart."""
    return max(16, wanted // 8)


def _next_block(q: torch.Tensor, product: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an orthonormal basis of what a product adds to the space, (n, b), and that part's own factor R.

    Orthogonalised twice, and again as long as much is taken away: rounding errors stay as large as what was.
    Where nothing is added, as for a delta of low rank, the new directions are arbitrary and harmless.
    """
    fresh, beyond = torch.linalg.qr(product - q @ (q.T @ product))
    for _ in range(_MOST_PASSES):
        fresh, again = torch.linalg.qr(fresh - q @ (q.T @ fresh))
        beyond = again @ beyond
        if bool(again.diagonal().abs().min() > _LITTLE_TAKEN):
            break
    return fresh, beyond


def _converged(theta: torch.Tensor, residual: torch.Tensor, kept: int) -> bool:
    """Whether all wanted singular values are known to the tolerance, by the residuals AᵀA·v − θ·v of their vectors.

    Relative errors of θ are at most ρ = ‖residual‖/θ, and at most ρ²/(1 − θ_c/θ) with θ_c what follows the space.
    """
    wanted = residual.shape[1]
    if not wanted:
        return True
    rho = residual.norm(dim=0) / theta[:wanted].clamp_min(torch.finfo(torch.float32).tiny)
    error = torch.minimum(rho, rho**2 / (1 - theta[kept] / theta[:wanted]).clamp_min(1e-6))
    return bool((error <= 2 * _TOLERANCE).all())  # θ is σ²: twice the relative error


def refine(v: torch.Tensor, y: torch.Tensor, most: int, needed: Needed) -> Leading:
    """Return the wanted triplets from orthonormal v, (n, k), that span them, and y = A·v, (m, k).

    This is a Rayleigh–Ritz step in float64: float32 leaves left vectors orthogonal to ε·(σ₁/σ_k)² only, and knows
    no singular value below √ε·σ₁, so that fewer than `most` may turn out to be wanted.
    """
    theta, turn = torch.linalg.eigh(sum(strip.double().T @ strip.double() for strip in torch.split(y, _STRIP)))
    sigma = theta.flip(0).clamp_min(0).sqrt()
    wanted = min(most, needed(sigma.cpu().numpy()))
    turn = turn.flip(1)[:, :wanted].float()
    u = (y @ turn) / sigma[:wanted].float().clamp_min(torch.finfo(torch.float32).tiny)
    return Leading(u=u, sigma=sigma[:wanted], v=v @ turn, following=float(sigma[-1]) if len(sigma) else 0.0)
