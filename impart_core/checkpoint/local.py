"""Checkpoints in folders of this machine.

Files are read with plain reads into the reader's own memory. Mapped files would be quicker to open, but the
pages that were touched stay in the process's resident memory until the map is closed.
"""

import stat
from dataclasses import dataclass
from pathlib import Path

from impart_core.base.errors import CheckpointError
from impart_core.checkpoint.source import Folder, SourceFile, no_folder


@dataclass(frozen=True)
class LocalFile(SourceFile):
    """A file of this machine; its stamp is its modification time in nanoseconds."""

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
    return LocalFile(str(path), found.st_size, found.st_mtime_ns, path)


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


def _entry(path: Path) -> LocalFile | None:
    try:
        found = path.stat()
    except OSError:  # a link that leads nowhere, or a file that was just removed
        return None
    return LocalFile(str(path), found.st_size, found.st_mtime_ns, path) if stat.S_ISREG(found.st_mode) else None


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read: {error.strerror or error}.")
