"""The decomposition: exact to float32, and the same each time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.base.errors import TensorValueError
from impart_core.delta.svd import decompose, numerical_rank
from tests.impart_core.delta.spectra import matrix_of, spectrum
from tests.support import decaying_delta

# A backward-stable float32 decomposition errs by a modest multiple of the unit roundoff times the norm.
ROUNDING = 50 * np.finfo(np.float32).eps


@given(m=st.integers(1, 24), n=st.integers(1, 24), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_factors_are_those_of_a_float64_decomposition(m: int, n: int, seed: int) -> None:
    delta = decaying_delta(m, n, seed=seed)
    factors = decompose(delta, "w")
    r = min(m, n)
    assert (factors.u.shape, factors.sigma.shape, factors.v.shape) == ((r, m), (r,), (r, n))
    expected = np.linalg.svd(delta.double().numpy(), compute_uv=False)
    np.testing.assert_allclose(factors.sigma.numpy(), expected, rtol=0, atol=ROUNDING * expected[0])
    for vectors in (factors.u.double(), factors.v.double()):
        torch.testing.assert_close(vectors @ vectors.T, torch.eye(r, dtype=torch.float64), rtol=0, atol=ROUNDING)
    rebuilt = (factors.u.double() * factors.sigma.double()[:, None]).T @ factors.v.double()
    assert torch.linalg.matrix_norm(rebuilt - delta.double()) <= ROUNDING * expected[0] * r**0.5


@given(m=st.integers(1, 24), n=st.integers(1, 24), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_the_largest_entry_of_every_left_vector_is_positive(m: int, n: int, seed: int) -> None:
    u = decompose(decaying_delta(m, n, seed=seed), "w").u
    largest = u.abs().argmax(dim=1)
    assert bool((u[torch.arange(len(u)), largest] > 0).all())


def test_the_sign_does_not_follow_the_deltas_sign() -> None:
    delta = decaying_delta(12, 8)
    plus, minus = decompose(delta, "w"), decompose(-delta, "w")
    torch.testing.assert_close(plus.u, minus.u, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(plus.v, -minus.v, rtol=0, atol=ROUNDING)


def test_the_same_delta_gives_the_same_bits() -> None:
    delta = decaying_delta(40, 56)
    one, two = decompose(delta, "w"), decompose(delta.clone(), "w")
    assert torch.equal(one.u, two.u)
    assert torch.equal(one.sigma, two.sigma)
    assert torch.equal(one.v, two.v)


def test_a_delta_whose_singular_values_overflow_is_refused_by_name() -> None:
    with pytest.raises(TensorValueError, match=r"'layer.w', up to 3e\+38 in size"):
        decompose(torch.full((8, 8), 3e38), "layer.w")


def test_the_numerical_rank_counts_what_is_above_rounding() -> None:
    assert numerical_rank(np.array([1.0, 1e-3, 1e-9, 0.0]), 4, 4) == 2
    assert numerical_rank(np.array([1.0, 1.0]), 2, 2) == 2
    assert numerical_rank(np.array([1e-40, 0.0]), 2, 2) == 1


SHAPES = [(131072, 64), (64, 131072), (600, 600), (1500, 400), (400, 1500)]  # of which the last three are not small


@pytest.mark.parametrize("shape", SHAPES)
def test_the_numerical_rank_counts_all_that_float32_tells(shape: tuple[int, int]) -> None:
    sigma = 10.0 ** np.linspace(0, -9, min(shape))
    delta = matrix_of(sigma, *shape)
    oracle = torch.linalg.svdvals(delta.double()).numpy()
    rank = numerical_rank(decompose(delta, "w").sigma.double().numpy(), *shape)
    told, noise = (int((oracle > times * 1e-6 * oracle[0]).sum()) for times in (3, 0.3))
    assert told <= rank <= noise
    # Each of them is right to half of itself, and all but the last few to a hundredth.
    np.testing.assert_allclose(decompose(delta, "w").sigma[:rank], oracle[:rank], rtol=0.5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 7])
def test_the_numerical_rank_takes_no_rounding_for_a_direction(shape: tuple[int, int], rank: int) -> None:
    delta = matrix_of(0.5 ** np.arange(rank, dtype=np.float64), *shape)
    assert numerical_rank(decompose(delta, "w").sigma.double().numpy(), *shape) == rank


@pytest.mark.parametrize("span", [3, 5, 7])  # in tens, of the singular values: the Gram matrix squares them
@pytest.mark.parametrize("shape", [(700, 400), (400, 700), (500, 500)])
def test_a_leading_part_down_to_the_numerical_rank_is_right_by_every_route(shape: tuple[int, int], span: int) -> None:
    sigma = 10.0 ** -np.linspace(0, span, min(shape))
    delta = matrix_of(sigma, *shape)
    oracle = torch.linalg.svdvals(delta.double()).numpy()
    for most in (40, 200, 400):
        part = decompose(delta, "w", lambda s, most=most: min(most, numerical_rank(s, *shape)))  # type: ignore[misc]
        assert len(part.sigma) == min(most, numerical_rank(oracle, *shape))
        np.testing.assert_allclose(part.sigma, oracle[: len(part.sigma)], rtol=1e-5, atol=ROUNDING / 5)
        eye = torch.eye(len(part.sigma))
        for vectors in (part.u, part.v):
            torch.testing.assert_close(vectors @ vectors.T, eye, rtol=0, atol=1e-4)


def test_the_numerical_rank_of_leading_values_is_that_of_all_or_their_number() -> None:
    sigma = np.array([1.0, 1e-3, 1e-9, 0.0])
    assert [numerical_rank(sigma[:k], 4, 4) for k in (1, 2, 3)] == [1, 2, 2]


def first(count: int):  # type: ignore[no-untyped-def]
    return lambda sigma: min(count, len(sigma))


@pytest.mark.parametrize("shape", [(300, 420), (420, 300)])
@pytest.mark.parametrize(
    ("kind", "wanted", "route"), [("tail", 12, "krylov"), ("power", 140, "gram"), ("flat", 140, "gram")]
)
def test_the_leading_part_is_that_of_the_whole(shape: tuple[int, int], kind: str, wanted: int, route: str) -> None:
    sigma = spectrum(kind, 300)
    delta = matrix_of(sigma, *shape)
    part, whole = decompose(delta, "w", first(wanted)), decompose(delta, "w")
    assert (part.route, whole.route) == (route, "exact")
    assert (part.u.shape, part.sigma.shape, part.v.shape) == ((wanted, shape[0]), (wanted,), (wanted, shape[1]))
    np.testing.assert_allclose(part.sigma.numpy(), sigma[:wanted], rtol=1e-5, atol=5e-7)
    ours, theirs = ((f.u[:wanted] * f.sigma[:wanted, None]).T @ f.v[:wanted] for f in (part, whole))
    # The two leading parts differ by the turn of vectors at the edge, whose singular values are nearly equal.
    assert torch.dist(ours, theirs) < 1e-3 * torch.linalg.matrix_norm(theirs)


def test_a_small_delta_is_decomposed_exactly_and_cut() -> None:
    delta = decaying_delta(40, 56)
    part, whole = decompose(delta, "w", first(7)), decompose(delta, "w")
    assert (part.route, part.fallbacks) == ("exact", 0)
    assert torch.equal(part.u, whole.u[:7])
    assert torch.equal(part.v, whole.v[:7])


def test_what_no_quick_route_can_do_is_done_exactly_and_counted() -> None:
    sigma = 10.0 ** (-7.0 * np.arange(300) / 300)  # down to float32's own rounding
    part = decompose(matrix_of(sigma, 300, 300), "w", first(290))
    assert part.route == "exact"
    assert part.fallbacks >= 1
    np.testing.assert_allclose(part.sigma.numpy(), sigma[:290], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("rank", [1, 5])
def test_a_large_delta_of_low_rank_is_found_by_its_few_vectors(rank: int) -> None:
    delta = matrix_of(np.linspace(1.0, 0.5, rank), 400, 300)
    part = decompose(delta, "w", lambda sigma: numerical_rank(sigma, 400, 300))
    assert part.route == "krylov"
    assert len(part.sigma) == rank
    assert torch.dist((part.u * part.sigma[:, None]).T @ part.v, delta) < 1e-5 * torch.linalg.matrix_norm(delta)
