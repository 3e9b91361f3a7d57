"""`svd_speedup`: the full `torch.svd` of one layer's deltas over our decomposition of them, on one thread."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch

from impart_core.base.numerics import one_thread_per_kernel
from impart_core.delta.svd import decompose
from impart_core.methods.depth import LOWEST_CRS, Depth
from tests.bench.synthetic import FloatArray, delta_of, power, projection_shapes, stretched


def measure_decomposition() -> dict[str, float]:
    """Return speed-ups at the depth that CR 32 needs and at the default depth, and the largest error against float64.

    `power` is the hard case, a spectrum that falls slowly all the way.
    """
    figures: dict[str, float] = {}
    spectra: dict[str, Callable[[str, int], FloatArray]] = {"": stretched, "_power": lambda _, rank: power(rank)}
    for suffix, spectrum in spectra.items():
        figures |= {f"{name}{suffix}": value for name, value in _measure(spectrum).items()}
    return figures


def _measure(spectrum: Callable[[str, int], FloatArray]) -> dict[str, float]:
    depths = {"svd_speedup": 32.0, f"svd_speedup_cr{LOWEST_CRS[0]:g}": LOWEST_CRS[0]}
    full, ours = 0.0, dict.fromkeys(depths, 0.0)
    worst, fallbacks, triplets = 0.0, 0, 0
    with one_thread_per_kernel():
        for number, (short, (m, n)) in enumerate(projection_shapes().items()):
            delta = delta_of(spectrum(short, min(m, n)), m, n, seed=number)
            exact = torch.linalg.svdvals(delta.double())
            seconds, _ = _timed(torch.svd, delta)
            full += seconds
            for name, lowest_cr in depths.items():
                seconds, factors = _timed(decompose, delta, short, Depth(lowest_cr).needed(m, n))
                ours[name] += seconds
                fallbacks += factors.fallbacks
                count = len(factors.sigma)
                error = (factors.sigma.double() - exact[:count]).abs() / exact[:count]
                worst = max(worst, float(error.max()))
                triplets += count if lowest_cr == 32 else 0
    speedups = {name: full / seconds for name, seconds in ours.items()}
    return {**speedups, "svd_seconds": full, "triplets": triplets, "fallbacks": fallbacks, "largest_error": worst}


def _timed(work: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    started = perf_counter()
    result = work(*arguments)
    return perf_counter() - started, result
