"""The speed of sparse GPTQ against its plain loop, and its errors against rounding to nearest."""

from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import torch

from impart_core.base.numerics import one_thread_per_kernel
from impart_core.quantize.curvature import Curvature, output_error
from impart_core.quantize.gptq import GptqOptions, sparse_gptq
from impart_core.quantize.grid import RowRange
from impart_core.quantize.groups import Groups
from impart_core.quantize.ladder import Ladder
from impart_core.quantize.result import GridOptions, round_to_nearest
from impart_core.quantize.solve import quantize_matrix
from impart_core.quantize.streams import pack_matrices
from impart_core.quantize.support import support_gptq
from tests.impart_core.quantize.samples import CASES, factor_of, hessian_of, plain_gptq

COLUMNS, GROUP = 2048, 128
WHOLE, THIN = 2048, 512  # rows: all vectors of a square projection, or what a ratio of about 32 leaves of them
REPEATS = 3
SHARED = ("q", "k", "v")


def measure_quantize() -> dict[str, Any]:
    """Return the speed-up on a 2048-column factor, and the error over that of rounding to nearest on each vector.

    `gptq_speedup`: the plain column-by-column loop over ours, with the factored Hessian at hand, medians of runs that
    take turns; `_thin` with fewer rows. `shared_speedup`: three weights with a Hessian factored for each over the same
    with one for all. `gptq_over_rtn`: errors as Algorithm 2 counts them; `outputs_over_rtn`: those of the outputs;
    `support_over_rtn`: the same of GPTQ on each row's support, which takes `support_seconds_thin`. `lossless_share`:
    the stored bytes of codes over their packed ones, by bits.
    """
    with one_thread_per_kernel():
        return _speed() | _errors() | {"lossless_share": _lossless()}


def _speed() -> dict[str, float]:
    hessian = hessian_of("correlated", COLUMNS)
    curvature = Curvature.of(hessian, "bench")
    upper, figures = curvature.inverse_root, dict[str, float]()
    for suffix, rows in (("", WHOLE), ("_thin", THIN)):
        weight, mask = _factor(rows)
        plain = partial(plain_gptq, weight * mask, mask, upper, curvature.order, 2, GROUP)
        ours = partial(sparse_gptq, weight, mask, curvature, Ladder().spans(rows, GROUP), "bench")
        plain_seconds, seconds = _medians(plain, ours)
        figures |= {f"gptq_speedup{suffix}": plain_seconds / seconds, f"gptq_seconds{suffix}": seconds}
    given = (*_factor(THIN), Ladder().spans(THIN, GROUP))

    def quantize_all(shared: bool) -> None:
        one = Curvature.of(hessian, "bench") if shared else None
        for name in SHARED:
            sparse_gptq(given[0], given[1], one or Curvature.of(hessian, "bench"), given[2], name)

    apart, together = _medians(partial(quantize_all, False), partial(quantize_all, True))
    support = _seconds(partial(support_gptq, given[0], given[1], curvature, given[2], "bench"))
    return {**figures, "shared_speedup": apart / together, "support_seconds_thin": support}


def _errors() -> dict[str, dict[str, float]]:
    figures: dict[str, dict[str, float]] = {"gptq_over_rtn": {}, "outputs_over_rtn": {}, "support_over_rtn": {}}
    for case in CASES:
        given = (case.part("weight"), case.part("mask"), case.curvature, case.ranges, case.name)
        nearest = round_to_nearest(*given, GridOptions(scale_dtype="float32")).error
        paper = sparse_gptq(*given, GptqOptions(scale_dtype="float32", block_size=32))
        support = support_gptq(*given, GridOptions(scale_dtype="float32"))
        figures["gptq_over_rtn"][case.name] = paper.error / nearest
        figures["outputs_over_rtn"][case.name] = output_error(given[0], paper.weight, case.part("hessian")) / nearest
        figures["support_over_rtn"][case.name] = output_error(given[0], support.weight, case.part("hessian")) / nearest
    return figures


def _lossless() -> dict[str, float]:
    """Return, for each width, the stored bytes of codes over their packed ones: Gaussian values, groups of 128."""
    found = {}
    for bits in (2, 3, 4, 8):
        values = torch.randn(200, COLUMNS, generator=torch.Generator().manual_seed(bits))
        groups = Groups(torch.ones_like(values, dtype=torch.bool), (RowRange(0, len(values), bits),), GROUP)
        codes = pack_matrices([quantize_matrix(values, groups, None, "bench")], lossless=True)
        found[str(bits)] = codes["codes"].numel() / int(codes["packed"])
    return found


def _factor(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a factor, and a mask that keeps half of its first vectors and hardly anything of its last."""
    weight, _ = factor_of(rows, COLUMNS)
    keep = torch.linspace(1, 0, rows)[:, None] ** 2 * 0.5 + 0.02
    return weight, torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < keep


def _medians(*works: Callable[[], object]) -> list[float]:
    """Return each one's median time; they take turns, so that a busy machine slows all alike."""
    for work in works:
        work()
    runs = [[_seconds(work) for work in works] for _ in range(REPEATS)]
    return [median(times) for times in zip(*runs, strict=True)]


def _seconds(work: Callable[[], object]) -> float:
    started = perf_counter()
    work()
    return perf_counter() - started
