"""GPTQ of each row on what its mask keeps of it, where Algorithm 2 works on all columns and masks afterwards.

Algorithm 2 makes up for errors in masked entries too, and then loses that part, as they stay zero. Here row k sees
H_SS, the rows and columns of H that its mask keeps: what is made up for is made up for in kept entries alone, and
½·Δ·H·Δᵀ of the row is exactly what the rounding of its columns adds up to. Each row needs a factor of its own,
|S|³/3 operations; with a full mask it is GPTQ.

With H_SS = R·Rᵀ, R upper triangular, column j becomes w_j + Σ_{i<j} (w_i − q_i)·R_ij/R_jj: the form of GPTQ that
needs no inverse (Chee et al., QuIP, 2023, Theorem 6). Supports are listed from the last column to be quantised to the
first, so that R is the lower triangular factor that the library gives, and its columns are contiguous.
"""

from collections.abc import Iterator

import torch

from impart_core.base.parallel import in_order
from impart_core.quantization.curvature import Curvature
from impart_core.quantization.grid import EntryGrid, nearest_half

# Entries of the factors worked on at once: 64 MiB, 1 GiB on devices, where a step over columns takes as long for few
# rows as for many; and a few times that in temporaries. Never by the memory that is free: the bytes would depend on it.
MOST_ENTRIES, _MOST_ENTRIES_ON_DEVICE = 1 << 24, 1 << 28


def codes_on_support(
    values: torch.Tensor, mask: torch.Tensor, curvature: Curvature, grid: EntryGrid
) -> torch.Tensor | None:
    """Return the codes of a matrix whose grids are given, float32, (rows, columns), each row on its own support.

    Rows do not depend on each other. Masked entries have the code of zero; those without a grid have their values.
    Arguments and result are those of `gptq.codes_under_mask`.
    """
    if curvature.root is None:
        return None
    codes = grid.zeros.clone(memory_format=torch.contiguous_format)
    damped = _padded(curvature)

    def quantize(batch: tuple[torch.Tensor, torch.Tensor]) -> bool:
        rows, support = batch
        root = _roots(damped, support)
        return root is not None and _quantize(values, codes, grid, root, rows, support)

    return codes if all(in_order(quantize, _batches(mask.bool(), curvature.order))) else None


def _batches(mask: torch.Tensor, order: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield rows with about as many kept entries, to be worked on together.

    Yields:
        Which rows, int64, (batch,); and their supports, int64, (batch, size): kept columns from the last to be
        quantised to the first, then the number of columns as often as it takes to be as long as the longest.
    """
    backwards = order.flip(0)
    kept = mask[:, backwards]
    counts = kept.sum(dim=1)
    by_count = torch.argsort(counts, descending=True, stable=True)
    most = MOST_ENTRIES if mask.device.type == "cpu" else _MOST_ENTRIES_ON_DEVICE
    first = 0
    while first < len(by_count) and (size := int(counts[by_count[first]])):
        rows = by_count[first : first + max(1, most // size**2)]
        places = torch.argsort(~kept[rows], dim=1, stable=True)[:, :size]  # kept ones first, their order unchanged
        yield rows, backwards[places].masked_fill(~torch.gather(kept[rows], 1, places), len(order))
        first += len(rows)


def _padded(curvature: Curvature) -> torch.Tensor:
    """Return the damped H with a row and a column of zeros after the last, (columns + 1, columns + 1)."""
    damped = torch.nn.functional.pad(curvature.hessian, (0, 1, 0, 1))
    damped.diagonal()[:-1].add_(curvature.added)
    return damped


def _roots(damped: torch.Tensor, support: torch.Tensor) -> torch.Tensor | None:
    """Return the factors of H_SS, lower triangular, (batch, size, size), or None where one does not exist."""
    count, size = support.shape
    matrices = torch.empty(count, size, size, device=damped.device)
    for one, matrix in zip(support, matrices, strict=True):
        torch.index_select(damped.index_select(0, one), 1, one, out=matrix)
    matrices.diagonal(dim1=1, dim2=2).masked_fill_(support == len(damped) - 1, 1.0)
    root, info = torch.linalg.cholesky_ex(matrices)
    exists = bool((info == 0).all()) and bool(torch.isfinite(root.diagonal(dim1=1, dim2=2)).all())
    return root if exists else None


def _quantize(
    values: torch.Tensor,
    codes: torch.Tensor,
    grid: EntryGrid,
    root: torch.Tensor,
    rows: torch.Tensor,
    support: torch.Tensor,
) -> bool:
    """Quantise a batch of rows, write their codes into `codes`, and return whether everything is finite."""
    kept = support < values.shape[1]
    at = (rows[:, None], torch.where(kept, support, 0))
    parts = (values, grid.scales, grid.zeros, grid.levels, grid.half)
    target, scales, zeros, levels, half = (part[at].T.contiguous() for part in parts)
    target.mul_(kept.T)  # (size, batch); what is filled up is zero, and stays so
    any_half = bool(half.any())
    diagonal = root.diagonal(dim1=1, dim2=2).T.contiguous()
    below = root.transpose(1, 2)  # row j: column j of R
    delta = torch.zeros(support.shape, device=values.device)
    found, rounding = torch.empty_like(target), torch.empty_like(target)
    for j in reversed(range(len(target))):
        wanted = target[j] + (below[:, j, j + 1 :] * delta[:, j + 1 :]).sum(dim=1) / diagonal[j]
        code = (wanted / scales[j]).round_().add_(zeros[j]).clamp_(min=0)
        torch.minimum(code, levels[j], out=code)
        value = (code - zeros[j]).mul_(scales[j])
        if any_half:
            rounded = nearest_half(wanted)
            code, value = torch.where(half[j], rounded, code), torch.where(half[j], rounded, value)
        found[j] = code
        delta[:, j] = target[j] - value
        torch.sub(wanted, value, out=rounding[j])
    codes[rows[kept.nonzero()[:, 0]], support[kept]] = found.T[kept]
    return bool(torch.isfinite(rounding.mul_(diagonal).double().square_().sum()))
