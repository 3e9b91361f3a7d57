"""Directions of a weighted delta: they add up to it, and are orthonormal in the metrics."""

import pytest
import torch

from impart_core.base.errors import TensorValueError
from impart_core.quantization.kfac import Sensitivity, weighted_factors


def sensitivity_of(m: int, n: int) -> Sensitivity:
    generator = torch.Generator().manual_seed(1)
    sides = (torch.randn(2 * size, size, generator=generator) * torch.logspace(0, -2, size) for size in (m, n))
    return Sensitivity(*(side.T @ side for side in sides))


def test_triplets_add_up_to_the_delta_and_are_orthonormal_in_the_metrics() -> None:
    m, n = 12, 20
    delta = torch.randn(m, n, generator=torch.Generator().manual_seed(0))
    found = weighted_factors(delta, sensitivity_of(m, n), m, "w")
    u, sigma, v = found.factors.u, found.factors.sigma, found.factors.v
    torch.testing.assert_close((u.T * sigma) @ v, delta, atol=1e-4, rtol=1e-4)
    for vectors, metric in zip((u, v), found.metrics, strict=True):
        torch.testing.assert_close(vectors @ metric.matrix @ vectors.T, torch.eye(m), atol=1e-4, rtol=1e-4)


def test_leading_triplets_lose_least_in_the_metrics() -> None:
    m, n, rank = 12, 20, 4
    delta = torch.randn(m, n, generator=torch.Generator().manual_seed(0))
    found = weighted_factors(delta, sensitivity_of(m, n), m, "w")

    def lost(low_rank: torch.Tensor) -> float:
        left, right = found.metrics
        error = delta - low_rank
        return float(((left.matrix @ error) * (error @ right.matrix)).sum())

    factors = found.factors
    u, sigma, v = torch.linalg.svd(delta, full_matrices=False)
    ours = (factors.u[:rank].T * factors.sigma[:rank]) @ factors.v[:rank]
    assert lost(ours) < 0.9 * lost((u[:, :rank] * sigma[:rank]) @ v[:rank])
    assert lost(ours) == pytest.approx(float((factors.sigma[rank:] ** 2).sum()), rel=1e-3)  # Eckart and Young


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_scale_of_factors_does_not_matter_nor_do_zeros(scale: float) -> None:
    delta, usual = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), sensitivity_of(6, 8)
    scaled = Sensitivity(usual.rows * scale, usual.columns * scale)
    found, same = (weighted_factors(delta, one, 6, "w").factors.sigma for one in (scaled, usual))
    torch.testing.assert_close(found, same, rtol=1e-4, atol=1e-6)
    nothing = weighted_factors(delta, Sensitivity(torch.zeros(6, 6), torch.zeros(8, 8)), 6, "w")
    torch.testing.assert_close(nothing.factors.sigma, torch.linalg.svdvals(delta), rtol=1e-5, atol=1e-6)


def test_gradients_that_are_not_finite_are_an_error_that_names_the_tensor() -> None:
    rows = torch.full((3, 3), torch.nan)
    with pytest.raises(TensorValueError, match=r"The inputs or gradients of 'layer\.w' hold NaN"):
        weighted_factors(torch.ones(3, 3), Sensitivity(rows, torch.eye(3)), 3, "layer.w")
