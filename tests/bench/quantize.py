"""The speed of quantisation, as `impart quantize` runs it, against plain GPTQ, and its errors against rounding."""

from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import torch

from impart_core.base.numerics import one_thread_per_kernel
from impart_core.quantization.curvature import Curvature, Inputs
from impart_core.quantization.grid import RowRange
from impart_core.quantization.groups import Groups
from impart_core.quantization.options import LadderOptions
from impart_core.quantization.solve import Solver, quantize_matrix
from impart_core.quantization.streams import pack_matrices
from tests.impart_core.quantization.plain import on_grid, output_error, plain_gptq
from tests.impart_core.quantization.samples import CASES, factor_of, hessian_of

COLUMNS, OPTIONS = 2048, LadderOptions()
WHOLE, THIN = 2048, 512  # rows: all vectors of a square projection, or what a ratio of about 32 leaves of them
REPEATS = 3
SHARED = ("q", "k", "v")


def measure_quantize() -> dict[str, Any]:
    """Return the speed-up on a 2048-column factor, and the error over that of rounding to nearest on each vector.

    `gptq_speedup`: plain GPTQ, with the factored Hessian and the grids at hand, over `quantize_matrix` by Algorithm 2,
    whose codes are the same; medians of runs that take turns. `support_speedup`: the same plain GPTQ over
    `quantize_matrix` by its default, GPTQ on each row's support. `_thin`: with fewer rows. `shared_speedup`: three
    whole factors with a Hessian factored for each over the same with one for all. `gptq_over_rtn`, `support_over_rtn`:
    errors of the outputs over those of rounding to nearest. `lossless_share`: the stored bytes of codes over their
    packed ones, by bits.
    """
    with one_thread_per_kernel():
        return _speed() | _shared() | _errors() | {"lossless_share": _lossless()}


def _speed() -> dict[str, float]:
    curvature = Curvature.of(hessian_of("correlated", COLUMNS), "bench")
    upper, figures = curvature.inverse_root, dict[str, float]()
    for suffix, rows in (("", WHOLE), ("_thin", THIN)):
        weight, mask = _factor(rows)
        groups, kept = _groups(mask), weight * mask
        grid = groups.entries(*groups.fit(kept))
        plain, *ours = _medians(
            partial(plain_gptq, kept, mask, upper, curvature.order, on_grid(grid, curvature.order)),
            partial(quantize_matrix, weight, groups, curvature, "bench", solver="masked"),
            partial(quantize_matrix, weight, groups, curvature, "bench", solver=OPTIONS.solver),
        )
        for name, seconds in zip(("gptq", OPTIONS.solver), ours, strict=True):
            figures |= {f"{name}_speedup{suffix}": plain / seconds, f"{name}_seconds{suffix}": seconds}
    return figures


def _shared() -> dict[str, float]:
    weight, mask = factor_of(THIN, COLUMNS)
    groups, hessian = _groups(mask), hessian_of("correlated", COLUMNS)

    def quantize_all(shared: bool) -> None:
        one = Inputs(hessian)
        for name in SHARED:
            inputs = one if shared else Inputs(hessian)
            quantize_matrix(weight, groups, inputs.curvature, name, solver=OPTIONS.solver)

    apart, together = _medians(partial(quantize_all, False), partial(quantize_all, True))
    return {"shared_speedup": apart / together}


def _errors() -> dict[str, dict[str, float]]:
    solvers: dict[str, Solver] = {"gptq_over_rtn": "masked", "support_over_rtn": "support"}
    figures: dict[str, dict[str, float]] = {figure: {} for figure in solvers}
    for case in CASES:
        weight, hessian, groups = case.part("weight"), case.part("hessian"), case.groups
        curvature, kept = Curvature.of(hessian, case.name), weight * groups.mask
        rounded = output_error(kept, quantize_matrix(weight, groups, None, case.name).values(), hessian)
        for figure, solver in solvers.items():
            found = quantize_matrix(weight, groups, curvature, case.name, solver=solver).values()
            figures[figure][case.name] = output_error(kept, found, hessian) / rounded
    return figures


def _lossless() -> dict[str, float]:
    """Return, for each width, the stored bytes of codes over their packed ones: Gaussian values, groups of 128."""
    found = {}
    for bits in (2, 3, 4, 8):
        values = torch.randn(200, COLUMNS, generator=torch.Generator().manual_seed(bits))
        whole = torch.ones_like(values, dtype=torch.bool)
        groups = Groups(whole, (RowRange(0, len(values), bits),), OPTIONS.group_size)
        codes = pack_matrices([quantize_matrix(values, groups, None, "bench")], lossless=True)
        found[str(bits)] = codes["codes"].numel() / int(codes["packed"])
    return found


def _groups(mask: torch.Tensor) -> Groups:
    return Groups(mask, OPTIONS.ladder.spans(len(mask)), OPTIONS.group_size)


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
