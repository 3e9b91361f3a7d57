"""Bytes against what the ratio allows, and the speed of decoding against the matrix product that it needs."""

from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import torch

from impart_core.base.numerics import one_thread_per_kernel
from impart_core.base.settings import build_config
from impart_core.blocks.request import CompressConfig
from impart_core.delta.svd import decompose
from impart_core.methods import METHODS, Projection
from impart_core.methods.depth import Depth
from tests.bench.synthetic import delta_of, projection_shapes, stretched

CR = 32.0
REPEATS = 5


def measure_codec() -> dict[str, Any]:
    """Return, at CR 32 on one layer's projections: stored bytes over nominal bytes by method, and decoding speed.

    `decode_gbps`: gigabytes of 16-bit weights that are rebuilt a second; `decode_over_product`: the time of the
    matrix product U·Σ·Vᵀ alone, from dense factors at hand, over that of decoding.
    """
    stored, dense = dict.fromkeys(METHODS, 0), 0
    decoding, product = 0.0, 0.0
    with one_thread_per_kernel():
        for number, (short, (m, n)) in enumerate(projection_shapes().items()):
            delta = delta_of(stretched(short, min(m, n)), m, n, seed=number)
            factors = decompose(delta, short, Depth(CR).needed(m, n))
            projection = Projection(short, (m, n), lambda delta=delta: delta, lambda factors=factors: factors)
            dense += 2 * m * n
            for method in METHODS:
                config = build_config(CompressConfig, method=method, cr=CR)
                codes = METHODS.get(method).encode(projection, config)
                stored[method] += sum(code.numel() * code.element_size() for code in codes.values())
                if method == "impart":
                    u, v = (torch.randn(len(codes["sigma"]), side) for side in (m, n))
                    decoding += _quickest(partial(METHODS.get(method).decode, codes, short, (m, n), config.seed))
                    product += _quickest(partial(torch.matmul, u.T, v))
    return {
        "bytes_over_nominal": {method: count / (dense / CR) for method, count in stored.items()},
        "decode_gbps": dense / decoding / 1e9,
        "decode_over_product": product / decoding,
    }


def _quickest(work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(REPEATS):
        started = perf_counter()
        work()
        best = min(best, perf_counter() - started)
    return best
