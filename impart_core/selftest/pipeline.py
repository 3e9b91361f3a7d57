"""Checks of a whole compression: the same request gives the same bytes twice, and lost memory is tried again."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from impart_core import tinyzoo
from impart_core.base.retry import RetryPolicy, patiently
from impart_core.blocks.request import CompressConfig
from impart_core.calibrate.text import CalibrationText
from impart_core.engine.compress import compress
from impart_core.engine.executor import ThreadExecutor
from impart_core.engine.requests import CompressRequest
from impart_core.selftest.check import Check
from impart_core.store.store import Store

_AT_ONCE = RetryPolicy(retries=1, first_delay=0, longest_delay=0, limit_seconds=60)
_TEXT = CalibrationText(source="tinyzoo:math", sequences=2, length=32)


def pipeline_checks() -> tuple[Check, ...]:
    """Return the checks."""
    return (
        Check("calibrated pair, twice", "files that differ", 0, _calibrated_twice),
        Check("out of memory, tried again", "failures", 0, _out_of_memory),
    )


def _calibrated_twice(device: torch.device) -> float:
    with TemporaryDirectory() as scratch:
        first, second = (_digests(Path(scratch) / number, device) for number in ("first", "second"))
    return len(set(first.items()) ^ set(second.items()))


def _digests(folder: Path, device: torch.device) -> dict[str, str]:
    """Compress the tiny zoo's pair into a store of its own, and return the digest of each file by artifact."""
    request = CompressRequest(
        base=str(tinyzoo.path("base")),
        finetuned=str(tinyzoo.path("math")),
        config=CompressConfig(cr=64, method="impart-qt", options={"ladder": "2", "fill": False}),
        store=Store(folder).url,
        device=str(device),
        calibration=_TEXT,
    )
    with ThreadExecutor(1) as executor:
        compress(request, executor)
    store = Store(folder)
    return {
        f"{made}/{number}": entry.sha256
        for made in store.ids()
        for number, entry in enumerate(store.manifest(made).files)
    }


def _out_of_memory(device: torch.device) -> float | None:
    """Ask for more memory than the device has, then for a little: the policy of GPU work must try again."""
    if device.type != "cuda":
        return None
    everything = torch.cuda.get_device_properties(device).total_memory
    sizes = iter((2 * everything, 1 << 20))
    made = patiently("allocate", lambda: torch.empty(next(sizes), dtype=torch.uint8, device=device), _AT_ONCE)
    return float(made.numel() != 1 << 20)
