"""Iso-C: the sum of the deltas with all singular values alike (Marczak et al. 2025, arXiv 2502.04959, Algorithm 1)."""

import torch

from impart_core.delta.svd import decompose, numerical_rank
from impart_core.merging.matrices import matrix_wise
from impart_core.merging.method import Each, Tensors, each, merge_method


@merge_method("iso_c", "Iso-C", "arXiv 2502.04959")
def iso_c(deltas: Tensors, *, weight: Each = 1.0, lambda_: float = 1.0) -> torch.Tensor:
    """Return λ·σ̄·U Vᵀ; of tensors that are no matrices, λ times the mean of w_i·ΔW_i.

    U diag(σ) Vᵀ is the singular value decomposition of Σ w_i·ΔW_i, σ̄ the mean of its singular values, those that are
    nought left out: the directions that belong to them are any.

    Args:
        deltas: ΔW_i, float32, all of one shape.
        weight: w_i; the paper's are 1.
        lambda_: λ, the scaling term; the paper's α.
    """
    return matrix_wise(deltas, each(weight, deltas), _isotropic).mul_(lambda_)


def _isotropic(matrices: list[torch.Tensor]) -> torch.Tensor:
    total = matrices[0]
    for matrix in matrices[1:]:
        total.add_(matrix)
    if not bool(total.any()):
        return total
    factors = decompose(total, "the sum")
    rank = numerical_rank(factors.sigma.double().cpu().numpy(), *total.shape)
    return (factors.u[:rank].T * factors.sigma[:rank].mean()) @ factors.v[:rank]
