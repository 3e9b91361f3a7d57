"""Bytes of remote checkpoints that a run has fetched and will read again: they are not fetched twice.

A first run reads every tensor to know what it is, and again to work on it. What the first reading fetched lies in a
scratch folder (TMPDIR) until the run ends, as far as its disk has room.
"""

import os
import shutil
import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from impart_core.base.files import scratch_folder

_SHARE_OF_FREE = 0.5  # of the scratch folder's disk
_lock = threading.Lock()
_spools: "list[_Spool]" = []  # of the runs that are under way, innermost last


@dataclass
class _Copy:
    """A sparse copy of a file, and the ranges (first byte, byte after the last) that it holds, rising and apart."""

    path: Path
    ranges: list[tuple[int, int]] = field(default_factory=list)

    def holds(self, start: int, end: int) -> bool:
        return any(first <= start and end <= last for first, last in self.ranges)

    def add(self, start: int, end: int) -> None:
        merged: list[tuple[int, int]] = []
        for first, last in sorted([*self.ranges, (start, end)]):
            if merged and first <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(last, merged[-1][1])
            else:
                merged.append((first, last))
        self.ranges = merged


@dataclass
class _Spool:
    """What one run has fetched: copies by the key of their file, and the bytes that there is still room for."""

    folder: Path
    room: int
    copies: dict[Hashable, _Copy] = field(default_factory=dict)


@contextmanager
def spooling() -> Iterator[None]:
    """Keep what is fetched of remote files, for as long as the block lasts."""
    with scratch_folder() as folder:
        spool = _Spool(folder, int(_SHARE_OF_FREE * shutil.disk_usage(folder).free))
        with _lock:
            _spools.append(spool)
        try:
            yield
        finally:
            with _lock:
                _spools.remove(spool)


def keep(key: Hashable, start: int, data: bytes | memoryview) -> None:
    """Keep a range of a file for the innermost run; a disk that is full or fails costs time, nothing else.

    Args:
        key: tells the file and its content from all others.
        start: of the range.
        data: its bytes.
    """
    with _lock:
        if not _spools or len(data) > _spools[-1].room:
            return
        spool = _spools[-1]
        spool.room -= len(data)
        copy = spool.copies.setdefault(key, _Copy(spool.folder / str(len(spool.copies))))
    with suppress(OSError):
        descriptor = os.open(copy.path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            written = os.pwrite(descriptor, data, start)
        finally:
            os.close(descriptor)
        if written == len(data):
            with _lock:
                copy.add(start, start + written)


def read_kept(key: Hashable, start: int, buffer: memoryview) -> bool:
    """Fill a buffer with the bytes of a file from `start` on, if a run has kept them all; return whether it did."""
    with _lock:
        copies = [spool.copies[key] for spool in _spools if key in spool.copies]
        path = next((copy.path for copy in copies if copy.holds(start, start + len(buffer))), None)
    if path is None:
        return False
    with suppress(OSError), path.open("rb", buffering=0) as file:
        return os.preadv(file.fileno(), [buffer], start) == len(buffer)
    return False
