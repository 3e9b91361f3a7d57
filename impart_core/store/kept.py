"""Files that this process has just sent to a store and will soon read again: they are not fetched back.

Factors are read once by what encodes their block, activations once by the next layer. Which stage runs in which process
is the executor's choice, so that stages do not hand files to each other; the one that finds none here fetches it.
"""

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_lock = threading.Lock()
_folders: dict[str, list[Path]] = {}  # by store, of the runs that are under way, innermost last


@contextmanager
def keeping(url: str) -> Iterator[None]:
    """Keep what is published in a store, for as long as the block lasts, until it is read for the first time."""
    with tempfile.TemporaryDirectory(prefix="impart-kept-", ignore_cleanup_errors=True) as folder:
        with _lock:
            _folders.setdefault(url, []).append(Path(folder))
        try:
            yield
        finally:
            with _lock:
                _folders[url].remove(Path(folder))


def keep(url: str, sha256: str, path: Path) -> None:
    """Keep a file that was published, without a copy where the filesystem has hard links; else not at all."""
    with _lock:
        folders = _folders.get(url)
        if folders:
            with suppress(OSError):
                os.link(path, folders[-1] / sha256)


def take(url: str, sha256: str) -> Path | None:
    """Return a file that was kept, which is the caller's to delete; None where there is none."""
    with _lock:
        for folder in _folders.get(url, ()):
            with suppress(OSError):
                return (folder / sha256).rename(folder / f"{sha256}.{threading.get_ident()}.taken")
    return None
