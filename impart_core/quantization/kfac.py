"""What an error of each entry of a matrix does to a model's predictions, by the Kronecker-factored approximation.

With x what a linear layer is fed and g the gradient of the loss in what it gives, the mean of gᵀΔx squared is about
tr(G·Δ·A·Δᵀ), A and G the mean x·xᵀ and g·gᵀ (K-FAC, Martens and Grosse 2015). Directions are then those of G^½·ΔW·A^½.
Here the exponents are ¼, half as much: both matrices are of little text, and of a loss that is no quadratic so far from
the fine-tune. Measured: docs/methods.md.
"""

from dataclasses import dataclass

import torch

from impart_core.base.errors import TensorValueError
from impart_core.delta.factors import Factors
from impart_core.delta.svd import decompose

_EXPONENT = 0.25
_DAMPING = 0.1  # of the mean eigenvalue
_POWERS = (-1, 1, 2)


@dataclass(frozen=True)
class Sensitivity:
    """The Kronecker factors of one matrix, (m, n), each of any scale, symmetric, float32.

    Attributes:
        rows: of what meets its rows, (m, m): gradients of outputs, or inputs where a layer stores (in, out).
        columns: of what meets its columns, (n, n).
    """

    rows: torch.Tensor
    columns: torch.Tensor


@dataclass(frozen=True)
class Weighted:
    """The singular triplets of G^¼·ΔW·A^¼, taken back to the space of ΔW.

    Attributes:
        factors: ΔW = Σ_k σ_k u_k v_kᵀ, of all triplets; u_k and v_k are orthonormal in the metrics only.
        metrics: G^½ and A^½, by which u_k and v_k are to be held against their codes.
    """

    factors: Factors
    metrics: tuple[torch.Tensor, torch.Tensor]


def weighted_factors(delta: torch.Tensor, sensitivity: Sensitivity, rank: int, name: str) -> Weighted:
    """Return the leading triplets of a weighted delta.

    Args:
        delta: float32, (m, n), on any device.
        sensitivity: on any device.
        rank: how many triplets, at most.
        name: the tensor, for errors.

    Raises:
        TensorValueError: a factor holds NaN or infinity, or the product cannot be decomposed.
    """
    left, right = (_powers(matrix.to(delta.device), name) for matrix in (sensitivity.rows, sensitivity.columns))
    found = decompose(left[1] @ delta @ right[1], name, lambda _: rank)
    factors = Factors(found.u @ left[-1], found.sigma, found.v @ right[-1], found.route, found.fallbacks)
    return Weighted(factors, (left[2], right[2]))


def _powers(matrix: torch.Tensor, name: str) -> dict[int, torch.Tensor]:
    """Return powers of D = (M/mean + damping)^¼, −1, 1 and 2, float32; of a matrix of zeros the identity."""
    if not bool(torch.isfinite(matrix).all()):
        raise TensorValueError(
            f"The inputs or gradients of {name!r} hold NaN or infinity. Check the calibration text, and that the model "
            "gives finite predictions for it."
        )
    mean = float(matrix.diagonal().double().mean())
    if mean <= 0:
        return dict.fromkeys(_POWERS, torch.eye(len(matrix), device=matrix.device))
    values, vectors = torch.linalg.eigh(matrix.double() / mean)
    damped = values.clamp_min(0) + _DAMPING
    return {power: ((vectors * damped ** (_EXPONENT * power)) @ vectors.T).float() for power in _POWERS}
