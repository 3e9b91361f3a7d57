"""GPTQ of each row on what its mask keeps of it, where Algorithm 2 works on all columns and masks afterwards.

Algorithm 2 makes up for errors in masked entries too, and then loses that part, as they stay zero. Here row k sees
H_SS, the rows and columns of H that its mask keeps: what is made up for is made up for in kept entries alone, and
½·Δ·H·Δᵀ of the row is exactly what the rounding of its columns adds up to. Each support needs a factor of its own,
|S|³/3 operations, and serves all rows after each other that have it; with a full mask it is GPTQ.

With H_SS = R·Rᵀ, R upper triangular, column j becomes w_j + Σ_{i<j} (w_i − q_i)·R_ij/R_jj: the form of GPTQ that
needs no inverse (Chee et al., QuIP, 2023, Theorem 6). Supports are listed from the last column to be quantised to the
first, so that R is the lower triangular factor that the library gives, and its columns are contiguous.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from impart_core.base.parallel import in_order
from impart_core.quantization.curvature import Curvature
from impart_core.quantization.grid import EntryGrid, nearest_half

# Entries of the factors worked on at once: 64 MiB, 1 GiB on devices, where a step over columns takes as long for few
# rows as for many; and a few times that in temporaries. Never by the memory that is free: the bytes would depend on it.
MOST_ENTRIES, _MOST_ENTRIES_ON_DEVICE = 1 << 24, 1 << 28
_BLOCK = 32  # columns whose errors are gathered before they go to the columns after them, in one product


@dataclass(frozen=True)
class _Batch:
    """Supports that are worked on together, each with the rows that have it.

    Attributes:
        support: kept columns from the last to be quantised to the first, as places in this order, then the number of
            columns as often as it takes to be as long as the longest, int64, (batch, size).
        rows: the rows of each support, then its first again as often as it takes, int64, (batch, most rows).
        own: which of them are no such repetition, bool, (batch, most rows).
    """

    support: torch.Tensor
    rows: torch.Tensor
    own: torch.Tensor


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
    backwards = curvature.order.flip(0)
    damped = _padded(curvature, backwards)

    def quantize(batch: _Batch) -> bool:
        root = _roots(damped, batch.support)
        return root is not None and _quantize(values, codes, grid, root, backwards, batch)

    return codes if all(in_order(quantize, _batches(mask.bool()[:, backwards]))) else None


def _batches(kept: torch.Tensor) -> Iterator[_Batch]:
    """Yield the rows of a mask, its columns from the last to be quantised to the first, by supports of like size."""
    columns, device = kept.shape[1], kept.device
    first_of = torch.cat([torch.ones(1, dtype=torch.bool, device=device), (kept[1:] != kept[:-1]).any(dim=1)])
    starts = first_of.nonzero()[:, 0]
    lengths = torch.diff(starts, append=torch.tensor([len(kept)], device=device))
    counts = kept[starts].sum(dim=1)
    by_count = torch.argsort(counts, descending=True, stable=True)
    starts, lengths, sizes = starts[by_count], lengths[by_count], counts[by_count].tolist()
    longest = int(lengths.max()) if len(lengths) else 0
    most = MOST_ENTRIES if device.type == "cpu" else _MOST_ENTRIES_ON_DEVICE
    first = 0
    while first < len(sizes) and (size := sizes[first]):
        group = slice(first, first + max(1, most // (size * max(size, longest))))
        masks, own_rows = kept[starts[group]], lengths[group, None]
        places = torch.argsort(~masks, dim=1, stable=True)[:, :size]  # kept ones first, their order unchanged
        steps = torch.arange(int(own_rows.max()), device=device)
        yield _Batch(
            support=places.masked_fill(~torch.gather(masks, 1, places), columns),
            rows=starts[group, None] + torch.where(steps < own_rows, steps, 0),
            own=steps < own_rows,
        )
        first = group.stop


def _padded(curvature: Curvature, order: torch.Tensor) -> torch.Tensor:
    """Return the damped H in an order, with a row and a column of zeros after the last, (columns + 1, columns + 1)."""
    damped = torch.nn.functional.pad(curvature.hessian[order][:, order], (0, 1, 0, 1))
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


@torch.inference_mode()  # a column takes a few microseconds, of which bookkeeping for gradients is a part
def _quantize(
    values: torch.Tensor,
    codes: torch.Tensor,
    grid: EntryGrid,
    root: torch.Tensor,
    backwards: torch.Tensor,
    batch: _Batch,
) -> bool:
    """Quantise a batch, write its codes into `codes`, and return whether everything is finite.

    Args:
        values: float32, (rows, columns), zero where masked.
        codes: written into, likewise.
        grid: every entry's grid.
        root: R of each support, lower triangular as it is listed, (batch, size, size).
        backwards: columns from the last to be quantised to the first.
        batch: which rows, and their supports.
    """
    kept = batch.support < values.shape[1]
    columns = torch.where(kept, backwards[batch.support.where(kept, 0)], 0)
    at = (batch.rows[None], columns.T[:, :, None])
    state = _State.of(values, grid, at, kept.T[:, :, None])
    finite = torch.ones((), dtype=torch.bool, device=values.device)
    for stop in range(root.shape[1], 0, -_BLOCK):
        block, done = slice(max(0, stop - _BLOCK), stop), slice(stop, None)
        diagonal = root.diagonal(dim1=1, dim2=2)[:, block, None]
        wanted = state.target[block].clone()
        if stop < root.shape[1]:
            owed = torch.bmm(root[:, done, block].mT, state.delta[:, done])
            wanted += owed.div_(diagonal).transpose(0, 1)
        _quantize_block(state, block, wanted, root[:, block, block].mT / diagonal)
        rounding = (wanted - state.found[block]).mul_(diagonal.transpose(0, 1))
        finite &= torch.isfinite(rounding.square_().sum(dtype=torch.float64))
    found = torch.where(state.half, state.found, state.steps - state.lowest)
    written = kept.T[:, :, None] & batch.own[None]
    rows, places = (index.expand_as(written)[written] for index in at)
    codes[rows, places] = found[written]
    return bool(finite)


@dataclass(frozen=True)
class _State:
    """The entries of a batch, columns as they are listed; each (size, batch, most rows), float32, but for `delta`.

    Steps are codes less the zero point, so that zero is zero in every grid, and what is filled up stays zero.

    Attributes:
        target: what is to be quantised.
        scales: of the grids.
        lowest: the steps that the grids begin with.
        highest: the steps that they end with.
        half: which entries are kept as float16, bool.
        any_half: whether any is.
        steps: found so far.
        found: what these stand for.
        delta: target less found, zero for columns to come; (batch, size, most rows), as products read it.
    """

    target: torch.Tensor
    scales: torch.Tensor
    lowest: torch.Tensor
    highest: torch.Tensor
    half: torch.Tensor
    any_half: bool
    steps: torch.Tensor
    found: torch.Tensor
    delta: torch.Tensor

    @classmethod
    def of(
        cls, values: torch.Tensor, grid: EntryGrid, at: tuple[torch.Tensor, torch.Tensor], kept: torch.Tensor
    ) -> "_State":
        """Take the entries at rows and columns out of a matrix and its grids."""
        target, zeros, half = values[at] * kept, grid.zeros[at], grid.half[at]
        return cls(
            target=target,
            scales=grid.scales[at],
            lowest=-zeros,
            highest=grid.levels[at] - zeros,
            half=half,
            any_half=bool(half.any()),
            steps=torch.empty_like(target),
            found=torch.empty_like(target),
            delta=torch.zeros_like(target.transpose(0, 1), memory_format=torch.contiguous_format),
        )


def _quantize_block(state: _State, block: slice, wanted: torch.Tensor, into: torch.Tensor) -> None:
    """Round the columns of a block one after the other.

    Args:
        state: the state.
        block: which columns.
        wanted: what they are to be rounded to, as far as columns before the block say; completed here.
        into: R_ij/R_jj among them, row j what an error in column i does to it, (batch, block, block).
    """
    errors = state.delta[:, block]  # those to come are zero as yet
    parts = (state.target, state.scales, state.lowest, state.highest, state.steps, state.found)
    columns = zip(
        *(part[block].unbind() for part in parts), wanted.unbind(), into.unbind(1), errors.unbind(1), strict=True
    )
    for j, (target, scale, lowest, highest, step, found, goal, factors, delta) in reversed(list(enumerate(columns))):
        goal.unsqueeze(1).baddbmm_(factors.unsqueeze(1), errors)
        torch.div(goal, scale, out=step).round_().clamp_(lowest, highest)
        torch.mul(step, scale, out=found)
        if state.any_half:
            found.copy_(torch.where(state.half[block][j], nearest_half(goal), found))
        torch.sub(target, found, out=delta)
