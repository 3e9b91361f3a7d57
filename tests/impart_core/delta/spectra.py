"""Matrices whose singular values are known."""

import numpy as np
import numpy.typing as npt
import torch

FloatArray = npt.NDArray[np.float64]

SPECTRA = {
    "power": lambda k, r: (k + 1.0) ** -0.6,
    "exponential": lambda k, r: np.exp(-12.0 * k / r),
    "tail": lambda k, r: 0.8 * np.exp(-25.0 * k / r) + 0.2 * np.exp(-6.0 * k / r) + 1e-3,
    "flat": lambda k, r: 1.0 - 0.5 * k / r,
    "steps": lambda k, r: 4.0 ** -np.floor(k / 20.0),  # twenty equal ones, twenty a quarter as large, and so on
}


def spectrum(kind: str, r: int) -> FloatArray:
    """Return r falling singular values, σ₁ about 1."""
    return np.asarray(SPECTRA[kind](np.arange(r, dtype=np.float64), r))


def matrix_of(sigma: FloatArray, m: int, n: int, seed: int = 0) -> torch.Tensor:
    """Return a float32 (m, n) matrix with these singular values, to float32's rounding of the largest."""
    generator = torch.Generator().manual_seed(seed)
    sides = [torch.linalg.qr(torch.randn(size, len(sigma), generator=generator).double())[0] for size in (m, n)]
    return ((sides[0] * torch.from_numpy(sigma)) @ sides[1].T).float()
