"""Checkpoints in folders of this machine.

Files are read with plain reads into the reader's own memory. Mapped files would be quicker to open, but the
pages that were touched stay in the process's resident memory until the map is closed.
"""

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from impart_core.base.errors import CheckpointError
from impart_core.checkpoint.source import Folder, SourceFile, no_folder

# Where the Hub's own cache keeps what the files of its snapshots are links to.
_HUB_BLOB = re.compile(r"/models--[^/]+/blobs/[0-9a-f]{40,64}$")


@dataclass(frozen=True)
class LocalFile(SourceFile):
    """A file of this machine."""

    path: Path
    is_local = True

    @property
    def address(self) -> str:
        """Its absolute path, links resolved."""
        return str(self.path.resolve())

    def read_into(self, start: int, buffer: memoryview) -> int:
        """Fill a buffer with the bytes from `start` on, and return how many there were."""
        filled = 0
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(start)
                while filled < len(buffer) and (count := file.readinto(buffer[filled:])):
                    filled += count
        except OSError as error:
            raise _unreadable(self.path, error) from error
        return filled

    def on_disk(self, scratch: Path) -> Path:  # noqa: ARG002 - it needs no copy
        """Return its own path."""
        return self.path


def local_file(path: Path) -> LocalFile:
    """Return a file of this machine.

    Raises:
        CheckpointError: there is none, it may not be seen, or it is something else than a file.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    if not stat.S_ISREG(found.st_mode):
        raise CheckpointError(f"{path} is no file, but a folder, a pipe or a device. Give a file.")
    return LocalFile(str(path), found.st_size, _stamp(found), path)


def local_folder(path: Path) -> Folder:
    """List a folder of this machine.

    Raises:
        CheckpointError: it is a file, does not exist, or may not be read.
    """
    if not path.is_dir():
        raise no_folder(path, "is a file" if path.is_file() else "does not exist")
    try:
        entries = {entry.name: _entry(entry) for entry in sorted(path.iterdir())}
    except OSError as error:
        raise _unreadable(path, error) from error
    return Folder(str(path), entries)


def leads_outside(path: Path, folder: Path) -> bool:
    """Return whether a path leads by links out of its folder, other than to the Hub cache's own copy of a file."""
    real = path.resolve()
    return not real.is_relative_to(folder.resolve()) and not _HUB_BLOB.search(real.as_posix())


def _entry(path: Path) -> LocalFile | None:
    try:
        found = path.stat()
    except OSError:  # a link that leads nowhere, or a file that was just removed
        return None
    return LocalFile(str(path), found.st_size, _stamp(found), path) if stat.S_ISREG(found.st_mode) else None


def _stamp(found: os.stat_result) -> str | None:
    """Return a file's inode, and when it was modified and changed, in nanoseconds; None where there is no inode.

    The modification time alone can be set: `rsync -t`, `cp -p` and build caches leave other bytes under the same one.
    """
    return f"{found.st_ino}-{found.st_mtime_ns}-{found.st_ctime_ns}" if found.st_ino else None


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read: {error.strerror or error}.")
