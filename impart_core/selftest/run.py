"""All checks of one device, and what came out."""

from collections.abc import Callable

import torch

from impart_core.base.settings import Frozen
from impart_core.selftest.arithmetic import arithmetic_checks
from impart_core.selftest.check import CheckResult
from impart_core.selftest.pipeline import pipeline_checks
from impart_core.selftest.speed import Timing, time_layer

LAYER = (4096, 11008)  # of LLaMA-2 7B's MLP
SMALL = (256, 384)


class SelftestReport(Frozen):
    """What a self-test found.

    Attributes:
        device: the device that was checked.
        name: what the device calls itself.
        torch: torch's version.
        passed: whether every check passed.
        checks: each of them.
        shape: (m, n) of the matrix that was timed.
        timings: seconds and launches, on the device and on the CPU.
    """

    device: str
    name: str
    torch: str
    passed: bool
    checks: tuple[CheckResult, ...]
    shape: tuple[int, int]
    timings: tuple[Timing, ...]


def selftest(
    device: torch.device,
    shape: tuple[int, int] = LAYER,
    progress: Callable[[str, int, int, str], None] | None = None,
) -> SelftestReport:
    """Check a device against the CPU, and time one matrix on both.

    Args:
        device: the device.
        shape: (m, n) of the matrix that is timed.
        progress: called with a stage, pieces done, their number, and what the last one was.
    """
    checks = [*arithmetic_checks(), *pipeline_checks()]
    results = []
    for number, check in enumerate(checks, 1):
        results.append(check.run(device))
        if progress:
            progress("check", number, len(checks), check.name)
    return SelftestReport(
        device=str(device),
        name=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        torch=torch.__version__,
        passed=all(result.passed for result in results),
        checks=tuple(results),
        shape=shape,
        timings=tuple(time_layer(*shape, device)),
    )
