"""`python -m tests.bench.flushes`: what it costs that a store in a folder outlives a power loss.

The tiny zoo's math model is compressed into new stores: as it is, without flushing folders, and without any flush.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import Mock, patch

import impart_core as impart
from impart_core import tinyzoo
from impart_core.storage import folder

ROUNDS = 7
_fsync = os.fsync


class _Counted:
    """Flushes or does not, and counts."""

    def __init__(self, really: bool) -> None:
        """Begin at nought."""
        self.really, self.count = really, 0

    def __call__(self, descriptor: int) -> None:
        """Flush a file or folder."""
        self.count += 1
        if self.really:
            _fsync(descriptor)


@contextmanager
def flushing(files: bool, folders: bool) -> Iterator[_Counted]:
    """Flush only some, and count."""
    counted = _Counted(files)
    nothing = Mock()
    with patch.object(os, "fsync", counted):
        if folders:
            yield counted
        else:
            with patch.object(folder, "sync_folder", nothing), patch("impart_core.base.files.sync_folder", nothing):
                yield counted


def measure_flushes(rounds: int = ROUNDS) -> dict[str, float]:
    """Return seconds of a compression (median of rounds, taken in turns), flushes of one, and both ratios."""
    ways = {"all": (True, True), "files only": (True, False), "none": (False, False)}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    counts: dict[str, int] = {}
    for number in range(rounds + 1):
        for way, (files, folders) in ways.items():
            with tempfile.TemporaryDirectory() as scratch, flushing(files, folders) as counted:
                began = time.perf_counter()
                impart.compress(tinyzoo.path("base"), tinyzoo.path("math"), cr=16, store=f"{scratch}/store")
                if number:  # the first round warms up
                    seconds[way].append(time.perf_counter() - began)
                counts[way] = counted.count
    medians = {way: statistics.median(found) for way, found in seconds.items()}
    return {
        **{f"seconds, flushing {way}": value for way, value in medians.items()},
        **{f"flushes, flushing {way}": counts[way] for way in ("all", "files only")},
        "folders over files only": medians["all"] / medians["files only"],
        "all over none": medians["all"] / medians["none"],
    }


if __name__ == "__main__":
    for name, value in measure_flushes().items():
        print(f"{name:32} {value:.4g}")
