"""The range finder: the leading triplets of a float64 decomposition, or an honest no."""

import numpy as np
import pytest
import torch

from impart_core.delta.krylov import krylov_triplets
from tests.impart_core.delta.spectra import matrix_of, spectrum


def first(count: int):  # type: ignore[no-untyped-def]
    return lambda sigma: min(count, len(sigma))


@pytest.mark.parametrize("kind", ["power", "exponential", "tail", "steps"])
def test_it_finds_the_leading_singular_values_and_orthonormal_vectors(kind: str) -> None:
    sigma = spectrum(kind, 400)
    matrix = matrix_of(sigma, 500, 400)
    found = krylov_triplets(matrix, first(30), 300)
    assert found is not None
    assert found.holds(matrix)
    # 1e-5 is what `holds` checks; float32 arithmetic adds its rounding of the largest value.
    np.testing.assert_allclose(found.sigma.numpy(), sigma[:30], rtol=1e-5, atol=5e-7)
    rebuilt = (found.u.double() * found.sigma) @ found.v.double().T
    rest = torch.linalg.svdvals(matrix.double() - rebuilt)
    assert float(rest[0]) <= sigma[30] * (1 + 1e-3)  # no kept direction is left in the remainder


def test_it_says_no_where_the_space_may_not_grow_enough() -> None:
    assert krylov_triplets(matrix_of(spectrum("flat", 400), 400, 400), first(120), 160) is None


def test_it_stops_early_where_few_are_needed() -> None:
    matrix = matrix_of(spectrum("exponential", 400), 400, 400)
    asked: list[int] = []

    def needed(sigma: np.ndarray) -> int:  # type: ignore[type-arg]
        asked.append(len(sigma))
        return min(5, len(sigma))

    assert krylov_triplets(matrix, needed, 400) is not None
    assert max(asked) <= 160


@pytest.mark.parametrize("rank", [1, 3, 16])
def test_a_delta_of_low_rank_is_found_whole_although_the_space_can_not_grow(rank: int) -> None:
    sigma = 0.7 ** np.arange(rank, dtype=np.float64)
    matrix = matrix_of(sigma, 320, 300)
    found = krylov_triplets(matrix, lambda s: int((s > 1e-5 * s[0]).sum()), 200)
    assert found is not None
    assert found.holds(matrix)
    np.testing.assert_allclose(found.sigma.numpy(), sigma, rtol=1e-5, atol=5e-7)


def test_the_same_matrix_gives_the_same_bits() -> None:
    matrix = matrix_of(spectrum("power", 300), 300, 300)
    one, two = (krylov_triplets(matrix.clone(), first(20), 200) for _ in range(2))
    assert one is not None
    assert two is not None
    assert torch.equal(one.u, two.u)
    assert torch.equal(one.v, two.v)
    assert torch.equal(one.sigma, two.sigma)
