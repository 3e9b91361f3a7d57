"""An update has the directions of momentum, all of about the same size; matrices without gradient stay."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from impart_core.tinyzoo.muon import Muon, orthogonal


@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, 99))
def test_the_directions_stay_and_their_sizes_become_alike(m: int, n: int, seed: int) -> None:
    """Five rounds bring σ ≥ ‖σ‖/100 to between 0.6 and 1.3; here smaller ones are left out."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(m, n, generator=generator)
    u, sigma, v = torch.linalg.svd(matrix, full_matrices=False)
    sizes = u.T @ orthogonal(matrix) @ v.T
    large = sigma > sigma.norm() / 100
    torch.testing.assert_close(sizes, torch.diag(sizes.diag()), atol=1e-3, rtol=0)
    assert bool(((sizes.diag() > 0.6) & (sizes.diag() < 1.3))[large].all())


def test_of_nothing_nothing_is_made() -> None:
    assert not orthogonal(torch.zeros(3, 5)).any()


@pytest.mark.parametrize("shape", [(32, 64), (64, 32), (48, 48)])
def test_entries_move_by_the_rate(shape: tuple[int, int]) -> None:
    """U·Vᵀ of (m, n), m ≤ n, has m·1² in m·n entries: a root mean square of 1/√n, here by 0.7 to 1.2."""
    torch.manual_seed(0)
    moved, still = (torch.nn.Parameter(torch.zeros(shape)) for _ in range(2))
    optimizer = Muon([moved, still])
    optimizer.param_groups[0]["lr"] = 0.01
    moved.grad = torch.randn(shape)
    optimizer.step()
    assert 0.007 < float(moved.detach().square().mean().sqrt()) < 0.012
    assert float((moved.detach() * moved.grad).sum()) < 0
    assert not still.detach().any()
