"""Singular triplets: what the decompositions return, and how well they must hold."""

from dataclasses import dataclass
from typing import Literal

import torch

Route = Literal["exact", "gram", "krylov"]

VALUE_TOLERANCE = 1e-5  # of singular values, relative
ORTHOGONALITY_TOLERANCE = 1e-4  # largest entry of |UᵀU − I| and of |VᵀV − I|
_ROUNDING = 4 * torch.finfo(torch.float32).eps  # of σ₁: what float32 arithmetic leaves open in any of them


@dataclass(frozen=True)
class Factors:
    """ΔW = U diag(σ) Vᵀ, or its leading part: K triplets, σ falling.

    Attributes:
        u: left singular vectors as rows, (K, m), float32.
        sigma: singular values, (K,), float32.
        v: right singular vectors as rows, (K, n), float32.
        route: how they were computed.
        fallbacks: how many quicker routes were tried first and did not hold.
    """

    u: torch.Tensor
    sigma: torch.Tensor
    v: torch.Tensor
    route: Route = "exact"
    fallbacks: int = 0


@dataclass(frozen=True)
class Leading:
    """Leading triplets of a matrix (m, n) before they are checked: u (m, K), sigma float64 (K,), v (n, K).

    `following` estimates the largest singular value outside of the space that they were computed in; it lies
    below σ_K by the guard vectors, which are not part of u and v.
    """

    u: torch.Tensor
    sigma: torch.Tensor
    v: torch.Tensor
    following: float

    def holds(self, matrix: torch.Tensor) -> bool:
        """Check the triplets against the matrix itself.

        With ρ = ‖Aᵀu − σv‖/σ, and A·v = σ·u by construction (so that ‖u‖ tells whether σ is ‖A·v‖), a singular
        value lies within ρ·σ of each σ, and within ρ²·σ/(1 − (following/σ)²) of it as long as `following` bounds
        what is outside the space (Parlett, The Symmetric Eigenvalue Problem, §11.7).

        Returns:
            Whether every singular value is right to 1e-5 of itself plus 4ε of the largest, and both sides are
            orthonormal to 1e-4.
        """
        if not len(self.sigma):
            return True
        if not all(bool(torch.isfinite(part).all()) for part in (self.u, self.sigma, self.v)):
            return False
        sigma = self.sigma.float().clamp_min(torch.finfo(torch.float32).tiny)
        rho = (matrix.T @ self.u - self.v * sigma).norm(dim=0) / sigma
        apart = 1 - (self.following / sigma) ** 2
        error = torch.minimum(rho, rho**2 / apart.clamp_min(1e-6)) + (self.u.norm(dim=0) - 1).abs()
        allowed = VALUE_TOLERANCE + _ROUNDING * sigma[0] / sigma
        return bool((error <= allowed).all()) and all(_orthonormal(side) for side in (self.u, self.v))


def _orthonormal(vectors: torch.Tensor) -> bool:
    product = vectors.T @ vectors
    product.diagonal().sub_(1)
    return bool(product.abs().max() <= ORTHOGONALITY_TOLERANCE)
