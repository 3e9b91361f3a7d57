"""The reference's cases, and inputs of every kind."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from safetensors.torch import load_file

from impart_core.quantization.grid import Bits, RowRange
from impart_core.quantization.groups import Groups
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
    def order(self) -> torch.Tensor:
        """The columns in the order in which the reference took them."""
        diagonal = self.part("hessian").diagonal()
        return torch.argsort(diagonal, descending=True, stable=True) if self.act_order else torch.arange(len(diagonal))

    @property
    def groups(self) -> Groups:
        """The groups of kept entries that ours have in the place of the reference's groups of columns."""
        mask = self.part("mask").bool()
        return Groups(mask, (RowRange(0, len(mask), self.bits),), self.group_size)


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
def row_ranges(draw: st.DrawFn, rows: int) -> tuple[RowRange, ...]:
    """Draw ranges that cover the rows, of any bits."""
    ranges, start = [], 0
    while start < rows:
        stop = draw(st.integers(start + 1, rows))
        bits: Bits = draw(st.sampled_from([2, 3, 4, 8, 16]))
        ranges.append(RowRange(start, stop, bits))
        start = stop
    return tuple(ranges)
