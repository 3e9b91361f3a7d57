"""Speed of `ecsq` on one 4096×4096 matrix, from factors at hand, on one core."""

from collections.abc import Callable
from functools import partial
from time import process_time
from typing import Any

import torch

from impart_core.base.numerics import one_thread_per_kernel
from impart_core.delta.factors import Factors
from impart_core.methods import METHODS
from impart_core.methods.base import Coding, Projection

SIDE, CRS = 4096, (64.0, 256.0)
_VECTORS, _DECAY = 560, 0.6  # as many as may fit at CR 64, and how singular values fall
_REPEATS = 3


def measure_entropy() -> dict[str, Any]:
    """Return seconds of encoding without the decomposition, megabytes of 16-bit weights decoded a second, and a ratio.

    The ratio, `ecsq_decode_over_product`, is the time of the product U·Σ·Vᵀ alone, from as many dense vectors, over
    that of decoding.
    """
    with one_thread_per_kernel():
        projection = _projection()
        return {f"{name}_{cr:g}": value for cr in CRS for name, value in _at(cr, projection).items()}


def _at(cr: float, projection: Projection) -> dict[str, float]:
    coding, method = Coding(method="ecsq", cr=cr), METHODS.get("ecsq")
    started = process_time()
    codes = method.encode(projection, coding)
    encoding = process_time() - started
    vectors = torch.randn(method.needed_rank(SIDE, SIDE, coding) or 1, SIDE)
    decoding = _quickest(partial(method.decode, codes, "w", (SIDE, SIDE), 0))
    product = _quickest(partial(torch.matmul, vectors.T, vectors))
    return {
        "ecsq_encode_seconds": encoding,
        "ecsq_decode_mbps": 2 * SIDE * SIDE / decoding / 1e6,
        "ecsq_decode_over_product": product / decoding,
    }


def _projection() -> Projection:
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(SIDE, _VECTORS, generator=generator))[0].T.contiguous() for _ in "uv")
    factors = Factors(u=u, sigma=torch.arange(1, _VECTORS + 1).float() ** -_DECAY, v=v)
    delta = (u * factors.sigma[:, None]).T @ v
    return Projection("w", (SIDE, SIDE), lambda: delta, lambda: factors)


def _quickest(work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(_REPEATS):
        started = process_time()
        work()
        best = min(best, process_time() - started)
    return best
