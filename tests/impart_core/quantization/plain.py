"""What tests and benchmarks compare with: GPTQ as one would write it down, column by column, and errors of outputs."""

from collections.abc import Callable

import torch

from impart_core.quantization.grid import EntryGrid

# Rounds column j, (rows,), as it is to be quantised by then; with all that is left, (rows, columns), of which it is
# one. Columns are in the order of quantisation.
Nearest = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor]


def plain_gptq(
    weight: torch.Tensor, mask: torch.Tensor, upper: torch.Tensor, order: torch.Tensor, nearest: Nearest
) -> tuple[torch.Tensor, float]:
    """Return Algorithm 2 without blocks, (rows, columns), and its count of the error.

    Each column's error goes to all that follow at once.

    Args:
        weight: (rows, columns), in float32 or float64, which all of it is computed in.
        mask: (rows, columns).
        upper: U with H⁻¹ = UᵀU, columns in the order of quantisation.
        order: that order.
        nearest: rounds a column; see `on_grid` and `AlongOrder`.
    """
    left, keep, error = weight[:, order].clone(), mask[:, order].to(weight.dtype), 0.0
    quantized = torch.zeros_like(left)
    for j in range(left.shape[1]):
        target = left[:, j] * keep[:, j]
        quantized[:, j] = nearest(j, left, target) * keep[:, j]
        change = (target - quantized[:, j]) / upper[j, j]
        left[:, j + 1 :].addr_(change, upper[j, j + 1 :], alpha=-1)
        error += 0.5 * float(change.double().square().sum())
    return quantized[:, torch.argsort(order)], error


def on_grid(grid: EntryGrid, order: torch.Tensor) -> Nearest:
    """Round on grids that are given for each entry, (rows, columns) as they lie."""
    scales, zeros, levels, half = (part[:, order] for part in (grid.scales, grid.zeros, grid.levels, grid.half))

    def nearest(j: int, left: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        codes = torch.minimum((torch.round(target / scales[:, j]) + zeros[:, j]).clamp(min=0), levels[:, j])
        values = (codes - zeros[:, j]) * scales[:, j]
        return torch.where(half[:, j], target.half().to(target.dtype), values)

    return nearest


class AlongOrder:
    """The reference's grids: of groups of columns along the order, from what finished blocks leave of them."""

    def __init__(self, bits: int, group_size: int, block: int) -> None:
        self.levels, self.group_size, self.block = 2**bits - 1, group_size, block
        self.finished = self.scale = self.zero = torch.empty(0)

    def __call__(self, j: int, left: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if j % self.block == 0:
            self.finished = left.clone()
        if j % self.group_size == 0:
            group = self.finished[:, j : j + self.group_size]
            low, high = group.amin(1).clamp(max=0), group.amax(1).clamp(min=0)
            self.scale = torch.where(high > low, (high - low) / self.levels, 1.0)
            self.zero = torch.round(-low / self.scale)
        codes = torch.clamp(torch.round(target / self.scale) + self.zero, 0, self.levels)
        return (codes - self.zero) * self.scale


def upper_of(hessian: torch.Tensor, added: float) -> torch.Tensor:
    """Return U with (H + added·I)⁻¹ = UᵀU, float64, of a Hessian in the order of quantisation."""
    damped = hessian.double() + added * torch.eye(len(hessian), dtype=torch.float64)
    factor: torch.Tensor = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    return factor


def output_error(weight: torch.Tensor, quantized: torch.Tensor, hessian: torch.Tensor) -> float:
    """Return ½·tr(Δ·H·Δᵀ), in float64, of Δ = weight − quantized, both (rows, columns)."""
    delta = (weight - quantized).double()
    return 0.5 * float(((delta @ hessian.double()) * delta).sum())
