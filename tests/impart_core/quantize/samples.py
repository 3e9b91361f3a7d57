"""The reference's cases, inputs of every kind, and GPTQ as one would write it down: column by column."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from safetensors.torch import load_file

from impart_core.quantize.curvature import Curvature
from impart_core.quantize.grid import Bits, RowRange
from tests.support import VECTORS

HESSIANS = ("correlated", "rank deficient", "indefinite", "dead columns", "zero")


@dataclass(frozen=True)
class Case:
    """One case of the reference: what it was given, and what it returned."""

    name: str
    bits: Bits
    group_size: int | None
    act_order: bool

    def part(self, part: str) -> torch.Tensor:
        return _VECTORS[f"{self.name}.{part}"]

    @property
    def ranges(self) -> tuple[RowRange, ...]:
        return (RowRange(0, len(self.part("weight")), self.bits, self.group_size),)

    @property
    def curvature(self) -> Curvature:
        return Curvature.of(self.part("hessian"), self.name, self.act_order)


_VECTORS = load_file(VECTORS / "sparse_gptq.safetensors")
CASES = [
    Case("b2_g32", 2, 32, True),
    Case("b3_gnone", 3, None, False),
    Case("b8_g32", 8, 32, True),
    Case("b4_g16", 4, 16, False),
]


def case_names() -> set[str]:
    return {key.partition(".")[0] for key in _VECTORS}


def hessian_of(kind: str, columns: int, seed: int = 0) -> torch.Tensor:
    """Return the Hessian of inputs that have much in common, or one that makes trouble, (columns, columns)."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) * torch.arange(1, columns + 1)[:, None] ** -0.6
    inputs = torch.randn(4 * columns, columns, generator=generator) @ mixing
    hessian = 2 * inputs.T @ inputs / len(inputs)
    if kind == "rank deficient":
        few = inputs[: max(1, columns // 4)]
        return 2 * few.T @ few / len(few)
    if kind == "indefinite":
        return hessian - 3 * hessian.diagonal().mean() * torch.eye(columns)
    if kind == "dead columns":
        alive = (torch.arange(columns) % 3 > 0).float()
        return hessian * alive * alive[:, None]
    return hessian * 0 if kind == "zero" else hessian


def factor_of(rows: int, columns: int, keep: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return Gaussian rows of the size of singular vectors, and a mask that keeps so much of them."""
    generator = torch.Generator().manual_seed(1000 + seed)
    weight = torch.randn(rows, columns, generator=generator) * columns**-0.5
    return weight, torch.rand(rows, columns, generator=generator) < keep


@st.composite
def row_ranges(draw: st.DrawFn, rows: int, columns: int) -> tuple[RowRange, ...]:
    """Draw ranges that cover the rows, of any bits and group sizes."""
    ranges, start = [], 0
    while start < rows:
        stop = draw(st.integers(start + 1, rows))
        bits: Bits = draw(st.sampled_from([2, 3, 4, 8, 16]))
        ranges.append(RowRange(start, stop, bits, draw(st.none() | st.integers(1, columns + 3))))
        start = stop
    return tuple(ranges)


def plain_gptq(
    weight: torch.Tensor, mask: torch.Tensor, upper: torch.Tensor, order: torch.Tensor, bits: int, group_size: int
) -> torch.Tensor:
    """Return Algorithm 2 without blocks, (rows, columns): each column's error goes to all that follow at once.

    Args:
        weight: (rows, columns), in float32 or float64, which all of it is computed in.
        mask: (rows, columns).
        upper: U with H⁻¹ = UᵀU, columns in the order of quantisation.
        order: that order.
        bits: of each code.
        group_size: columns that share a grid; they follow the order.
    """
    left, keep, levels = weight[:, order].clone(), mask[:, order].to(weight.dtype), 2**bits - 1
    quantized = torch.zeros_like(left)
    for j in range(left.shape[1]):
        if j % group_size == 0:
            group = left[:, j : j + group_size]
            low, high = group.amin(1).clamp(max=0), group.amax(1).clamp(min=0)
            scale = torch.where(high > low, (high - low) / levels, 1.0)
            zero = torch.round(-low / scale)
        target = left[:, j] * keep[:, j]
        quantized[:, j] = (torch.clamp(torch.round(target / scale) + zero, 0, levels) - zero) * scale * keep[:, j]
        error = (target - quantized[:, j]) / upper[j, j]
        left[:, j + 1 :].addr_(error, upper[j, j + 1 :], alpha=-1)
    return quantized[:, torch.argsort(order)]
