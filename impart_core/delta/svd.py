"""Singular value decomposition of a delta: the quickest route that holds, by shape and by how much is needed."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch

from impart_core.base.errors import TensorValueError
from impart_core.delta.factors import Factors, Leading, Route
from impart_core.delta.gram import gram_triplets
from impart_core.delta.krylov import FloatArray, Needed, krylov_triplets

# Below, the exact decomposition takes milliseconds and nothing beats it.
_SMALL = 256
# A Krylov space wider than this share of the smaller side costs more than the Gram matrix's eigenproblem.
_WIDEST = 0.5


# Of σ₁·ε: what float32 makes of singular values that are zero. Measured on exact low ranks: 4 at r = 64, with 131,072
# rows 4 on one processor and 12 on another, whose sums are longer; 11 at 2048, 13 at 3072. The usual max(m, n) takes a
# thin delta's directions for rounding.
_OPEN, _OPEN_BY_RANK, _OPEN_BY_LENGTH = 4.0, 0.25, 0.25


def numerical_rank(sigma: FloatArray, m: int, n: int) -> int:
    """Return how many of the given singular values are above what float32 arithmetic leaves open; at least 1.

    Args:
        sigma: leading singular values of an m×n matrix, falling; all of them or fewer.
        m: rows.
        n: columns.
    """
    short, long = sorted((m, n))
    times = _OPEN + _OPEN_BY_RANK * math.sqrt(short) + _OPEN_BY_LENGTH * (math.sqrt(long / short) - 1)
    left_open = times * np.finfo(np.float32).eps
    return max(1, int((sigma > sigma[0] * left_open).sum()))


def decompose(delta: torch.Tensor, name: str, needed: Needed | None = None) -> Factors:
    """Return the thin SVD of a delta of shape (m, n), or its leading part, computed on the delta's device.

    The whole of it, and that of a small delta, is LAPACK's or cuSOLVER's in float32. A leading part comes from a
    Krylov space where few triplets are needed, else from the Gram matrix, in float32 and then in float64; each is
    checked (see `Leading.holds`), and one that does not hold is replaced by the next.

    Each vector pair's sign is fixed (the entry of u that is largest in magnitude is positive), since an SVD
    leaves it open and equal requests must give equal bytes.

    Args:
        delta: (m, n).
        name: the tensor's name, for the error.
        needed: from the leading singular values, how many triplets are wanted; None: all min(m, n).

    Raises:
        TensorValueError: naming the tensor, when its delta is too large or too ill-conditioned to decompose.
    """
    matrix = delta.float()
    try:
        wide = matrix.shape[0] < matrix.shape[1]
        tall = matrix.T if wide else matrix
        route, found, fallbacks = _quickest(tall, needed)
        sides = (found.v, found.u) if wide else (found.u, found.v)
        return _signed(sides[0].T, found.sigma.float(), sides[1].T, route, fallbacks)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise _not_decomposed(delta, name) from error


def _quickest(tall: torch.Tensor, needed: Needed | None) -> tuple[Route, Leading, int]:
    """Return the first route's triplets that hold, and how many did not."""
    fallbacks = 0
    if needed is not None and min(tall.shape) > _SMALL:
        for route, attempt in _routes(tall, needed):
            found = attempt()
            if found is not None and found.holds(tall):
                return route, found, fallbacks
            fallbacks += found is not None
    return "exact", _exact(tall, needed), fallbacks


def _routes(tall: torch.Tensor, needed: Needed) -> Iterator[tuple[Route, Callable[[], Leading | None]]]:
    yield "krylov", lambda: krylov_triplets(tall, needed, int(_WIDEST * tall.shape[1]))
    yield "gram", lambda: gram_triplets(tall, needed, torch.float32)
    yield "gram", lambda: gram_triplets(tall, needed, torch.float64)


def _exact(tall: torch.Tensor, needed: Needed | None) -> Leading:
    # LAPACK takes more than twice as long for a wide matrix as for a tall one.
    u, sigma, vh = torch.linalg.svd(tall.contiguous(), full_matrices=False)
    if not bool(torch.isfinite(sigma).all()):
        raise torch.linalg.LinAlgError("a singular value is not finite")  # type: ignore[attr-defined]
    wanted = len(sigma) if needed is None else needed(sigma.double().cpu().numpy())
    return Leading(u=u[:, :wanted], sigma=sigma[:wanted], v=vh[:wanted].T, following=0.0)


def _signed(u: torch.Tensor, sigma: torch.Tensor, v: torch.Tensor, route: Route, fallbacks: int) -> Factors:
    """Return factors of vectors as rows, with their signs fixed."""
    largest = u.abs().argmax(dim=1)
    sign = torch.where(u[torch.arange(len(u), device=u.device), largest] < 0, -1.0, 1.0)[:, None]
    return Factors(u=(u * sign).contiguous(), sigma=sigma, v=(v * sign).contiguous(), route=route, fallbacks=fallbacks)


def _not_decomposed(delta: torch.Tensor, name: str) -> TensorValueError:
    return TensorValueError(
        f"The delta of {name!r}, up to {delta.abs().max():g} in size, cannot be decomposed in float32. "
        "Check that both checkpoints are whole and that the base is the right one."
    )
