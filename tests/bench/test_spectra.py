"""The exponent of a spectrum is that of the power law it follows in its leading half, whatever its tail does."""

import pytest
import torch

from tests.bench.spectra import exponent


@pytest.mark.parametrize("a", [0.0, 0.3, 0.9])
def test_a_power_law_has_its_own_exponent(a: float) -> None:
    sigma = 7 * torch.arange(1, 129).double() ** -a
    sigma[64:] = 0.0
    assert exponent(sigma) == pytest.approx(a, abs=1e-9)
