"""Decompositions on a device give the CPU's bits where its kernels do, by every route."""

from collections.abc import Callable

import pytest
import torch

from impart_core.delta.factors import Factors, Leading
from impart_core.delta.gram import gram_triplets
from impart_core.delta.krylov import krylov_triplets
from impart_core.delta.svd import decompose
from tests.impart_core.delta.spectra import matrix_of, spectrum
from tests.pretend_device import PRETEND

ROUTES: dict[str, Callable[[torch.Tensor], Factors | Leading | None]] = {
    "exact": lambda delta: decompose(delta, "w"),
    "quickest": lambda delta: decompose(delta, "w", lambda sigma: min(20, len(sigma))),
    "most": lambda delta: decompose(delta, "w", lambda sigma: min(250, len(sigma))),
    "krylov": lambda delta: krylov_triplets(delta.T, lambda sigma: min(9, len(sigma)), 128),
    "gram in float32": lambda delta: gram_triplets(delta.T, lambda sigma: min(40, len(sigma)), torch.float32),
    "gram in float64": lambda delta: gram_triplets(delta.T, lambda sigma: min(40, len(sigma)), torch.float64),
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("kind", ["power", "steps"])
def test_a_route_is_the_same_on_a_device(route: str, kind: str) -> None:
    delta = matrix_of(spectrum(kind, 272), 272, 320)
    here, there = ROUTES[route](delta), ROUTES[route](delta.to(PRETEND))
    assert here is not None
    assert there is not None
    for part in ("u", "sigma", "v"):
        found = getattr(there, part)
        assert found.device == PRETEND
        assert torch.equal(found.cpu(), getattr(here, part))
    if isinstance(here, Leading) and isinstance(there, Leading):
        assert there.holds(delta.T.to(PRETEND)) == here.holds(delta.T)
