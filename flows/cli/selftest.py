"""The verb `selftest`: whether this machine's device computes what the CPU does, and how fast."""

import re
from typing import Annotated

import typer

from impart_core.base.errors import ConfigError
from impart_core.base.numerics import resolve_device
from impart_core.selftest.run import LAYER, SMALL, SelftestReport, selftest
from impart_flows.cli import options as opt
from impart_flows.cli.output import print_table, progress, show

_SMALLEST, _LARGEST = 64, 1 << 16

Device = Annotated[str, opt.FLAGS["device"]]
Size = Annotated[str, typer.Option(help="Rows x columns of the matrix that is timed.")]
Quick = Annotated[bool, typer.Option("--quick", help=f"Time a small matrix, {SMALL[0]}x{SMALL[1]}.")]


def check_device(
    device: Device = "auto",
    size: Size = f"{LAYER[0]}x{LAYER[1]}",
    quick: Quick = False,
    json: opt.JsonOption = False,
) -> None:
    """Check a device against the CPU, and time one layer's matrix on both.

    Exit code 1 if a check fails: of decompositions, each method and solver, Hessians, a calibrated compression run
    twice for the same bytes, and work that runs out of the device's memory and is tried again.

    Example: impart selftest --device cuda
    """
    shape = SMALL if quick else _shape(size)
    chosen = resolve_device(device)
    with progress(quiet=json) as reporter:
        report = selftest(chosen, shape, reporter)
    show(report, json, _print_report)
    if not report.passed:
        raise typer.Exit(1)


def _shape(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,6})[x×]([0-9]{1,6})", text)
    sides = (int(found[1]), int(found[2])) if found else (0, 0)
    if not all(_SMALLEST <= side <= _LARGEST for side in sides):
        raise ConfigError(
            f"--size is {text!r}; give rows x columns, each from {_SMALLEST} to {_LARGEST:,}, like 4096x11008."
        )
    return sides


def _print_report(report: SelftestReport) -> None:
    rows = [
        [
            check.name,
            check.error or (f"{check.measured} {check.value:.2g}" if check.value is not None else "does not apply"),
            f"{check.at_most:g}",
            f"{check.seconds:.1f}",
            "ok" if check.passed else "FAILED",
        ]
        for check in report.checks
    ]
    print_table(["check", "found", "at most", "seconds", ""], rows, f"{report.device} ({report.name})")
    timed = [[each.work, each.device, f"{each.seconds:.2f}", f"{each.launches:,}"] for each in report.timings]
    typer.echo("")
    print_table(["work", "device", "seconds", "launches"], timed, f"one {report.shape[0]}×{report.shape[1]} matrix")
    failed = sum(not check.passed for check in report.checks)
    typer.echo(f"\n{len(report.checks) - failed} of {len(report.checks)} checks passed.")
