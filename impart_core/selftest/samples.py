"""What the checks work on: seeded, made on the CPU, and like real deltas in what matters to kernels."""

import torch

from impart_core.delta.factors import Factors
from impart_core.methods.base import Projection
from impart_core.quantization.curvature import Inputs

CPU = torch.device("cpu")


def delta_of(m: int, n: int, seed: int = 0) -> torch.Tensor:
    """Return a delta (m, n), float32, whose singular values fall about as k^−0.7."""
    generator = torch.Generator().manual_seed(seed)
    rank = min(m, n)
    u, v = (torch.randn(side, rank, generator=generator) * side**-0.5 for side in (m, n))
    sigma: torch.Tensor = torch.arange(1, rank + 1) ** -0.7
    delta: torch.Tensor = (u * sigma) @ v.T
    return delta


def inputs_of(side: int, device: torch.device, seed: int = 0) -> Inputs:
    """Return inputs that have much in common, on a device; the Hessian is float32, (side, side)."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(2 * side, side, generator=generator) * torch.linspace(1.5, 0.2, side)
    rows += torch.randn(2 * side, 1, generator=generator)
    return Inputs((2 * rows.T @ rows / len(rows)).to(device), site="selftest")


def projection_of(delta: torch.Tensor, factors: Factors, inputs: Inputs | None, device: torch.device) -> Projection:
    """Return a projection as a compression makes it: its delta on the device, its factors from the CPU."""
    m, n = delta.shape
    there = delta.to(device)
    return Projection("selftest", (m, n), lambda: there, lambda: factors, inputs)
