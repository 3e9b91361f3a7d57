"""Singular values of every kind, with vectors to go with them, without a matrix that would have to be decomposed."""

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import strategies as st

from impart_core.delta.factors import Factors

FloatArray = npt.NDArray[np.float64]
KINDS = ("power", "exponential", "flat", "falling a little", "steps", "random", "low rank")


@st.composite
def spectra(draw: st.DrawFn, sizes: st.SearchStrategy[int]) -> FloatArray:
    """Draw r falling singular values, as float32 holds them."""
    r, slope = draw(sizes), draw(st.floats(0, 1))
    k = np.arange(r, dtype=np.float64)
    values = {
        "power": lambda: (k + 1) ** (-2 * slope),
        "exponential": lambda: np.exp(-15 * slope * k / r),
        "flat": lambda: np.ones(r),
        "falling a little": lambda: 1 - 0.9 * slope * k / r,
        "steps": lambda: 4.0 ** -np.floor(k / (1 + int(19 * slope))),
        "random": lambda: np.sort(np.random.default_rng(draw(st.integers(0, 999))).random(r))[::-1] + 1e-9,
        "low rank": lambda: (k <= slope * r) * 0.9**k,
    }
    return values[draw(st.sampled_from(KINDS))]().astype(np.float32).astype(np.float64)


def factors_of(sigma: FloatArray, m: int, n: int) -> Factors:
    """Return factors with these singular values and arbitrary vectors: no method looks at what these are."""
    generator = torch.Generator().manual_seed(len(sigma))
    u, v = (torch.randn(len(sigma), side, generator=generator) for side in (m, n))
    return Factors(u, torch.from_numpy(sigma).float(), v)


def leading(factors: Factors, count: int) -> Factors:
    """Return the first triplets."""
    return Factors(factors.u[:count], factors.sigma[:count], factors.v[:count])
