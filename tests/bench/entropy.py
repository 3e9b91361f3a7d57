"""Speed of `ecsq` on one 4096×4096 matrix, from factors at hand, on one core."""

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

    `ecsq_decode_over_product` is the time of the product U·Σ·Vᵀ alone, from as many dense vectors, over that of decoding.
    """
    figures: dict[str, Any] = {}
    with one_thread_per_kernel():
        projection = _projection()
        for cr in CRS:
            coding, method = Coding(method="ecsq", cr=cr), METHODS.get("ecsq")
            started = process_time()
            codes = method.encode(projection, coding)
            figures[f"ecsq_encode_seconds_{cr:g}"] = process_time() - started
            decoding = min(_seconds(lambda: method.decode(codes, "w", (SIDE, SIDE), 0)) for _ in range(_REPEATS))
            vectors = torch.randn(method.needed_rank(SIDE, SIDE, coding) or 1, SIDE)
            product = min(_seconds(lambda: vectors.T @ vectors) for _ in range(_REPEATS))
            figures[f"ecsq_decode_mbps_{cr:g}"] = 2 * SIDE * SIDE / decoding / 1e6
            figures[f"ecsq_decode_over_product_{cr:g}"] = product / decoding
    return figures


def _projection() -> Projection:
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(SIDE, _VECTORS, generator=generator))[0].T.contiguous() for _ in "uv")
    factors = Factors(u=u, sigma=torch.arange(1, _VECTORS + 1).float() ** -_DECAY, v=v)
    delta = (u * factors.sigma[:, None]).T @ v
    return Projection("w", (SIDE, SIDE), lambda: delta, lambda: factors)


def _seconds(work: Any) -> float:
    started = process_time()
    work()
    return process_time() - started
