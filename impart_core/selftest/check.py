"""One check of a device: a figure, what it may be at most, and how it went."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch

from impart_core.base.settings import Frozen


class CheckResult(Frozen):
    """How one check went.

    Attributes:
        name: what was checked.
        measured: what `value` is, in a few words.
        value: the figure; None where none came out, or it does not apply here.
        at_most: what it may be.
        passed: whether the figure is within its bound, or does not apply here; NaN is not.
        seconds: how long it took.
        error: why no figure came out.
    """

    name: str
    measured: str
    value: float | None = None
    at_most: float
    passed: bool
    seconds: float
    error: str | None = None


@dataclass(frozen=True)
class Check:
    """A check to make.

    Attributes:
        name: what is checked.
        measured: what comes out, in a few words.
        at_most: what it may be at most.
        work: takes the device and returns the figure, or None where it does not apply to this device.
    """

    name: str
    measured: str
    at_most: float
    work: Callable[[torch.device], float | None]

    def run(self, device: torch.device) -> CheckResult:
        """Make it. Whatever goes wrong on the device is a result: the other checks are still made."""
        began = perf_counter()
        value, error = None, None
        try:
            value = self.work(device)
        except Exception as found:
            error = f"{type(found).__name__}: {found}".splitlines()[0]
        if value is not None and not math.isfinite(value):
            error = f"the figure is {value}"
        return CheckResult(
            name=self.name,
            measured=self.measured,
            value=value if value is None or math.isfinite(value) else None,
            at_most=self.at_most,
            passed=error is None and (value is None or value <= self.at_most),
            seconds=perf_counter() - began,
            error=error,
        )


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the largest difference of two tensors over the largest magnitude of the second; NaN where any is."""
    first, second = ours.detach().cpu().double(), theirs.detach().cpu().double()
    return float((first - second).abs().max() / second.abs().max())
