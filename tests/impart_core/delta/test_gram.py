"""The Gram matrix's route: right to its stated depth, in either precision, and noticed below it."""

import numpy as np
import pytest
import torch

from impart_core.delta.gram import gram_triplets
from tests.impart_core.delta.spectra import matrix_of, spectrum


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["power", "flat", "tail", "steps"])
@pytest.mark.parametrize("shape", [(300, 300), (700, 520)])  # the second is made in two strips
def test_it_finds_the_leading_singular_values(dtype: torch.dtype, kind: str, shape: tuple[int, int]) -> None:
    sigma = spectrum(kind, shape[1])
    wanted = 30 if kind == "steps" else 150  # of the steps, the later ones are below float32's reach
    matrix = matrix_of(sigma, *shape)
    found = gram_triplets(matrix, lambda s: wanted, dtype)
    assert found.holds(matrix)
    np.testing.assert_allclose(found.sigma.numpy(), sigma[:wanted], rtol=1e-5, atol=5e-7)


def test_float64_reaches_deeper_than_float32_and_the_check_tells() -> None:
    sigma = 10.0 ** (-5.0 * np.arange(300) / 300)
    matrix = matrix_of(sigma, 300, 300)
    assert not gram_triplets(matrix, lambda s: 250, torch.float32).holds(matrix)
    deep = gram_triplets(matrix, lambda s: 250, torch.float64)
    assert deep.holds(matrix)
    np.testing.assert_allclose(deep.sigma.numpy(), sigma[:250], rtol=1e-5, atol=5e-7)
