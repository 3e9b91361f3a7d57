"""Checks of arithmetic: each decomposition, solver and method, and Hessians, against the CPU.

Devices sum in other orders, so that last bits differ, and a code that lies between two may become the other. What must
not differ is how good a result is. Products in TF32 are off by 1e-3: they fail the check of Hessians.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from impart_core.calibrate.hessian import add_product, mirror
from impart_core.delta.factors import VALUE_TOLERANCE, Leading
from impart_core.delta.gram import gram_triplets
from impart_core.delta.krylov import krylov_triplets
from impart_core.delta.svd import decompose
from impart_core.methods import METHODS
from impart_core.methods.base import Coding, Projection
from impart_core.quantization.grid import RowRange
from impart_core.quantization.groups import Groups
from impart_core.quantization.options import QuantizeOptions
from impart_core.quantization.solve import Solver, quantize_matrix
from impart_core.selftest.check import Check, apart
from impart_core.selftest.samples import CPU, delta_of, inputs_of, projection_of

_M, _N, _WANTED = 320, 384, 24  # large enough for every route of the decomposition
_ROWS, _COLUMNS = 96, 128  # of what is quantised
_SEED = 1
_ROUNDING = 1e-5  # of sums of a thousand float32 products in another order
_QUALITY = 0.02  # of an error: some codes become their neighbours
_SOLVERS: tuple[Solver, ...] = ("support", "masked", "nearest")
_CR, _LADDER = 12, "8x2,3x8,2"

Values = Callable[[torch.Tensor], torch.Tensor]


def arithmetic_checks() -> Iterator[Check]:
    """Yield the checks."""
    for route, values in _ROUTES.items():
        yield Check(f"decomposition {route}", "σ off by", 2 * VALUE_TOLERANCE, partial(_decomposition, values))
    yield Check("Hessian", "entries off by", _ROUNDING, _hessian)
    for rounding in _SOLVERS:
        yield Check(f"solver {rounding}", "error off by", _QUALITY, partial(_solver, rounding))
    for method in METHODS:
        solvers = _SOLVERS if issubclass(METHODS.get(method).options_model, QuantizeOptions) else ("",)
        for solver in solvers:
            name = f"method {method} {solver}".rstrip()
            yield Check(name, "error off by", _QUALITY, partial(_method, method, solver))


def _leading(found: Leading | None, matrix: torch.Tensor) -> torch.Tensor:
    if found is None or not found.holds(matrix):
        raise ArithmeticError("its triplets do not hold against the matrix")
    return found.sigma


def _krylov(delta: torch.Tensor) -> torch.Tensor:
    return _leading(krylov_triplets(delta.T, lambda sigma: min(_WANTED, len(sigma)), _M // 2), delta.T)


def _gram(dtype: torch.dtype, delta: torch.Tensor) -> torch.Tensor:
    return _leading(gram_triplets(delta.T, lambda sigma: min(_WANTED, len(sigma)), dtype), delta.T)


_ROUTES: dict[str, Values] = {
    "exact": lambda delta: decompose(delta, "selftest").sigma[:_WANTED],
    "krylov": _krylov,
    "gram float32": partial(_gram, torch.float32),
    "gram float64": partial(_gram, torch.float64),
}


def _decomposition(values: Values, device: torch.device) -> float:
    delta = delta_of(_M, _N, _SEED)
    exact = torch.linalg.svdvals(delta.double())[:_WANTED]
    found = values(delta.to(device)).cpu().double()
    return float(((found - exact) / exact).abs().max())


def _hessian(device: torch.device) -> float:
    rows = delta_of(1024, 640, _SEED)
    total = torch.zeros(640, 640, device=device)
    add_product(total, rows.to(device))
    mirror(total)
    return apart(total, rows.double().T @ rows.double())


def _solver(solver: Solver, device: torch.device) -> float:
    generator = torch.Generator().manual_seed(_SEED)
    weight = torch.randn(_ROWS, _COLUMNS, generator=generator)
    mask = torch.rand(_ROWS, _COLUMNS, generator=generator) < torch.linspace(1, 0.05, _ROWS)[:, None]
    ranges = (RowRange(0, 2, 8), RowRange(2, 10, 3), RowRange(10, _ROWS, 2))
    hessian = inputs_of(_COLUMNS, CPU).hessian

    def error(where: torch.device) -> float:
        groups = Groups(mask.to(where), ranges, 128)
        curvature = inputs_of(_COLUMNS, where).curvature
        values = quantize_matrix(weight.to(where), groups, curvature, "selftest", solver=solver).values().cpu()
        change = torch.where(mask, weight - values, 0.0)
        return float(((change @ hessian) * change).sum())

    return abs(error(device) / error(CPU) - 1)


def _method(method: str, solver: str, device: torch.device) -> float:
    delta = delta_of(_ROWS, _COLUMNS, _SEED)
    known = METHODS.get(method).options_model.model_fields
    options = {name: value for name, value in (("solver", solver), ("ladder", _LADDER)) if name in known}
    coding = Coding(method=method, cr=_CR, options=options)

    def error(where: torch.device) -> float:
        factors = decompose(delta.to(where), "selftest")
        at_home = type(factors)(factors.u.cpu().half(), factors.sigma.cpu(), factors.v.cpu().half())
        inputs = inputs_of(_COLUMNS, where) if solver not in ("", "nearest") else None
        projection: Projection = projection_of(delta, at_home, inputs, where)
        codes = METHODS.get(method).encode(projection, coding)
        decoded = METHODS.get(method).decode(codes, projection.name, projection.shape, coding.seed)
        return float(torch.dist(decoded, delta))

    return abs(error(device) / error(CPU) - 1)
