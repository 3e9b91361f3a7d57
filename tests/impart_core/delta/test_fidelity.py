"""What a code keeps of a delta: ρ² and gain by their definition, whatever the scales."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from impart_core.delta.fidelity import fidelity_of


@given(m=st.integers(1, 600), n=st.integers(1, 5), noise=st.floats(0, 30), scale=st.sampled_from([1e-30, 1.0, 1e30]))
def test_fidelity_is_that_of_its_definition(m: int, n: int, noise: float, scale: float) -> None:
    generator = torch.Generator().manual_seed(m)
    delta = torch.randn(m, n, generator=generator)
    code = 0.7 * delta + noise * torch.randn(m, n, generator=generator)
    exact, other = delta.numpy().astype(np.float64), code.numpy().astype(np.float64)
    dot, energy, norm = (exact * other).sum(), (exact**2).sum(), (other**2).sum()
    found = fidelity_of(scale * delta, scale * code)
    assert found.cosine_squared == pytest.approx(dot**2 / (energy * norm), rel=1e-4, abs=1e-9)
    assert found.gain == pytest.approx(dot / energy, rel=1e-4, abs=1e-6)


def test_of_nothing_nothing_is_kept() -> None:
    assert fidelity_of(torch.ones(3, 2), torch.zeros(3, 2)) == (0.0, 0.0)
    assert fidelity_of(torch.ones(3, 2), torch.full((3, 2), 0.5)) == (1.0, 0.5)
