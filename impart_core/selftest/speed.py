"""Seconds and kernel launches of one layer's matrix, decomposed and quantised as a compression does it."""

from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from impart_core.base.numerics import one_thread_per_kernel
from impart_core.base.settings import Frozen
from impart_core.delta.factors import Factors
from impart_core.delta.svd import decompose
from impart_core.methods import METHODS
from impart_core.methods.base import Coding
from impart_core.selftest.samples import CPU, delta_of, inputs_of, projection_of

_CR = 32


class Timing(Frozen):
    """One piece of work on one device.

    Attributes:
        work: what was done.
        device: where.
        seconds: how long it took.
        launches: operations that start a kernel, as torch dispatches them.
    """

    work: str
    device: str
    seconds: float
    launches: int


def time_layer(m: int, n: int, device: torch.device) -> Iterator[Timing]:
    """Yield how long one m×n matrix takes at CR 32, on the device and, where that is another, on the CPU."""
    delta = delta_of(m, n)
    for where in dict.fromkeys((device, CPU)):
        with one_thread_per_kernel():
            factors, decomposing = _timed("decompose", where, partial(_factors, delta, where))
            yield decomposing
            for solver in ("support", "masked"):
                yield _timed(f"impart-qt {solver}", where, partial(_encode, delta, factors, solver, where))[1]


def _factors(delta: torch.Tensor, device: torch.device) -> Factors:
    m, n = delta.shape
    rank = METHODS.get("impart-qt").needed_rank(m, n, _coding("support"))
    found = decompose(delta.to(device), "selftest", lambda sigma: min(rank or 1, len(sigma)))
    return Factors(found.u.half().cpu(), found.sigma.cpu(), found.v.half().cpu())


def _encode(delta: torch.Tensor, factors: Factors, solver: str, device: torch.device) -> None:
    inputs = inputs_of(delta.shape[1], device)
    METHODS.get("impart-qt").encode(projection_of(delta, factors, inputs, device), _coding(solver))


def _coding(solver: str) -> Coding:
    options = {"solver": solver, "fill": False, "ladder": "3x8,2"}
    return Coding(method="impart-qt", cr=_CR, options=options)


def _timed(what: str, device: torch.device, work: Callable[[], Any]) -> tuple[Any, Timing]:
    """Do some work twice: once to count, which also loads what the device has to load, and once to time."""
    with _Launches() as counter:
        found = work()
    _wait(device)
    began = perf_counter()
    work()
    _wait(device)
    seconds = perf_counter() - began
    return found, Timing(work=what, device=str(device), seconds=seconds, launches=counter.launches)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what this thread dispatches, but for views and new memory."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.launches += not (func.is_view or func.name().startswith(("aten::empty", "aten::new_empty")))
        return func(*args, **(kwargs or {}))
