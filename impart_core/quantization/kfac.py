"""What an error of each entry of a matrix does to a model's predictions, by the Kronecker-factored approximation.

With x what a linear layer is fed and g the gradient of the loss in what it gives, the mean of gᵀΔx squared is about
tr(G·Δ·A·Δᵀ), A and G the mean x·xᵀ and g·gᵀ (K-FAC, Martens and Grosse 2015). Directions are then those of G^½·ΔW·A^½.
Here the exponents are ¼, half as much: both matrices are of little text, and of a loss that is no quadratic so far from
the fine-tune. Measured: docs/methods.md.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from impart_core.base.errors import TensorValueError
from impart_core.delta.factors import Factors
from impart_core.delta.svd import decompose
from impart_core.quantization.feedback import Metric

_EXPONENT = 0.25
_DAMPING = 0.1  # of the mean eigenvalue


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
        metrics: G^½ and A^½, by which u_k and v_k are to be coded and held against their codes.
    """

    factors: Factors
    metrics: tuple[Metric, Metric]


def weighted_factors(
    delta: torch.Tensor, sensitivity: Sensitivity, rank: int, name: str, feedback: float = 0.0
) -> Weighted:
    """Return the leading triplets of a weighted delta.

    Args:
        delta: float32, (m, n), on any device.
        sensitivity: on any device.
        rank: how many triplets, at most.
        name: the tensor, for errors.
        feedback: what share of an entry's error the metrics make up for in other entries, 0 to 1.

    Raises:
        TensorValueError: a factor holds NaN or infinity, or the product cannot be decomposed.
    """
    left, right = (_side(matrix.to(delta.device), name, feedback) for matrix in (sensitivity.rows, sensitivity.columns))
    found = decompose(left.root @ delta @ right.root, name, lambda _: rank)
    factors = Factors(found.u @ left.inverse, found.sigma, found.v @ right.inverse, found.route, found.fallbacks)
    return Weighted(factors, (left.metric, right.metric))


class _Side(NamedTuple):
    """What follows from one Kronecker factor: D = (M/mean + damping)^¼ and its inverse, float32, and the metric D²."""

    root: torch.Tensor
    inverse: torch.Tensor
    metric: Metric


def _side(matrix: torch.Tensor, name: str, feedback: float) -> _Side:
    """Return what follows from one Kronecker factor; of one of zeros, identities."""
    if not bool(torch.isfinite(matrix).all()):
        raise TensorValueError(
            f"The inputs or gradients of {name!r} hold NaN or infinity. Check the calibration text, and that the model "
            "gives finite predictions for it."
        )
    mean = float(matrix.diagonal().double().mean())
    if mean <= 0:
        same = torch.eye(len(matrix), device=matrix.device)
        return _Side(same, same, Metric(same, torch.zeros_like(same)))
    values, vectors = torch.linalg.eigh(matrix.double() / mean)
    damped = values.clamp_min(0) + _DAMPING

    def to_the(power: int) -> torch.Tensor:
        powered: torch.Tensor = (vectors * damped ** (_EXPONENT * power)) @ vectors.T
        return powered

    return _Side(to_the(1).float(), to_the(-1).float(), Metric.of(to_the(2), to_the(-2), feedback))
