"""TSV-Merge: each task's leading singular vectors, made orthogonal (Gargiulo et al. 2025, arXiv 2412.00081, Alg. 1)."""

import torch

from impart_core.delta.svd import decompose, numerical_rank
from impart_core.merging.matrices import matrix_wise
from impart_core.merging.method import Each, Share, Tensors, each, merge_method


@merge_method("tsv_merge", "TSV-Merge", "arXiv 2412.00081")
def tsv_merge(
    deltas: Tensors, *, weight: Each = 1.0, density: Share | None = None, lambda_: float = 1.0
) -> torch.Tensor:
    """Return λ·U⊥ diag(σ) V⊥ᵀ; of tensors that are no matrices, λ times the mean.

    Of each w_i·ΔW_i the leading singular triplets are kept; U and V are those of all models side by side. U⊥ and V⊥
    are the orthogonal matrices nearest to them (Procrustes): of U = P D Qᵀ, P Qᵀ. Directions that U has twice have no
    nearest: those with D = 0 are left out, so that equal models merge to themselves.

    Args:
        deltas: ΔW_i, float32, all of one shape.
        weight: w_i; the paper's are 1.
        density: the share of the triplets that is kept of each model; None: 1 over the number of models, the paper's.
        lambda_: λ, the scaling term; the paper's α.
    """
    share = 1 / len(deltas) if density is None else density
    merged = matrix_wise(deltas, each(weight, deltas), lambda matrices: _whitened(matrices, share))
    return merged.mul_(lambda_)


def _whitened(matrices: list[torch.Tensor], share: float) -> torch.Tensor:
    m, n = matrices[0].shape
    count = max(1, int(share * min(m, n)))
    u, sigma, v = [], [], []
    for number, matrix in enumerate(matrices, 1):
        if not bool(matrix.any()):
            continue  # it has no directions
        factors = decompose(matrix, f"model {number}", lambda _: count)
        kept = min(count, numerical_rank(factors.sigma.double().cpu().numpy(), m, n))
        u.append(factors.u[:kept].T)
        sigma.append(factors.sigma[:kept])
        v.append(factors.v[:kept].T)
    if not sigma:
        return torch.zeros_like(matrices[0])
    left, right = (orthogonal(torch.cat(vectors, dim=1)) for vectors in (u, v))
    return (left * torch.cat(sigma)) @ right.T


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Return P Qᵀ of a matrix P D Qᵀ, (m, n), without the directions in which it is nought."""
    p, d, q = torch.linalg.svd(matrix, full_matrices=False)
    rank = numerical_rank(d.double().cpu().numpy(), *matrix.shape)
    nearest: torch.Tensor = p[:, :rank] @ q[:rank]
    return nearest
