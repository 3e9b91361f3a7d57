"""The check at run time: it passes what is right and notices what is not."""

from dataclasses import replace

import pytest
import torch

from impart_core.delta.factors import Leading
from tests.impart_core.delta.spectra import matrix_of, spectrum

SIGMA = spectrum("power", 60)
MATRIX = matrix_of(SIGMA, 80, 60)


def leading(wanted: int = 20) -> Leading:
    u, sigma, vh = torch.linalg.svd(MATRIX.double(), full_matrices=False)
    return Leading(u[:, :wanted].float(), sigma[:wanted], vh[:wanted].T.float(), float(sigma[wanted + 5]))


def test_exact_triplets_hold() -> None:
    assert leading().holds(MATRIX)
    assert leading(0).holds(MATRIX)


def test_a_singular_value_off_by_more_than_the_tolerance_does_not() -> None:
    found = leading()
    wrong = found.sigma * (1 + 3e-5)
    assert not replace(found, sigma=wrong, u=(MATRIX @ found.v) / wrong.float()).holds(MATRIX)


@pytest.mark.parametrize("side", ["u", "v"])
def test_vectors_that_are_not_orthonormal_do_not(side: str) -> None:
    found = leading()
    vectors = getattr(found, side).clone()
    vectors[:, 3] += 2e-4 * vectors[:, 4]
    assert not replace(found, **{side: vectors}).holds(MATRIX)


def test_vectors_turned_out_of_the_space_do_not() -> None:
    found = leading()
    turned = found.v.clone()
    outside = torch.linalg.svd(MATRIX, full_matrices=False)[2][20]  # the next one, 3 % smaller
    turned[:, 19] = (turned[:, 19] + 0.05 * outside) / (1 + 0.05**2) ** 0.5
    y = MATRIX @ turned
    assert not replace(found, v=turned, u=y / y.norm(dim=0)).holds(MATRIX)


def test_values_that_are_not_finite_do_not() -> None:
    found = leading()
    assert not replace(found, u=found.u * float("nan")).holds(MATRIX)
