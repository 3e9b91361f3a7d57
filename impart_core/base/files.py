"""Files that appear whole or not at all."""

import ctypes
import errno
import hashlib
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from impart_core.base.errors import ImpartError, StoreError, StoreFullError
from impart_core.base.retry import is_transient

_CHUNK = 1 << 20
_AT_FDCWD = -100  # Linux: fcntl.h
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
# What a file system says that cannot flush a folder, or a folder that may not be read.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR)


def write_atomically(target: Path, data: bytes, *, place: Callable[[Path, Path], None] = os.replace) -> None:
    """Write a file beside its target, flush it to disk, then put it in its place in one step and flush its folder.

    Args:
        target: the file to write; its folder exists.
        data: its whole content.
        place: how the finished file gets its name; `os.link` refuses a name that is taken.
    """
    scratch = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with scratch.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        place(scratch, target)
        sync_folder(target.parent)
    finally:
        scratch.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Flush a file's content to disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def renameat2(source: Path, target: Path, flags: int) -> int | None:
    """Rename by Linux's call of this name; return 0 or the number of its error, None where a system has no such call.

    Args:
        source: what is renamed.
        target: its new name.
        flags: of the call.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return None
    here = ctypes.c_int(_AT_FDCWD)
    ctypes.set_errno(0)
    done = rename(here, os.fsencode(source), here, os.fsencode(target), ctypes.c_uint(flags))
    return 0 if done == 0 else ctypes.get_errno()


def sync_folder(folder: Path) -> None:
    """Flush to disk what a folder holds by name, where its file system can; one that is gone by now needs none.

    Without this a file that was moved or linked into its place may not be there after a power loss.
    """
    if os.name == "nt":  # it opens no folders
        return
    try:
        opened = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno in _NO_FOLDER_SYNC:
            return
        raise
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(opened)


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 (hex)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_hashed(source: Path, target: Path) -> str:
    """Copy a file, flush it to disk, and return its SHA-256 (hex)."""
    digest = hashlib.sha256()
    with source.open("rb") as reading, target.open("wb") as writing:
        while piece := reading.read(_CHUNK):
            digest.update(piece)
            writing.write(piece)
        writing.flush()
        os.fsync(writing.fileno())
    return digest.hexdigest()


@contextmanager
def disk_errors(where: object, inside: Path | None = None) -> Iterator[None]:
    """Turn operating-system errors while writing to `where` into sentences; what may pass by itself stays as it is.

    Args:
        where: what is written to, as the sentence calls it.
        inside: the folder that it is, where more is done meanwhile: errors that name a file elsewhere stay as they are.

    Raises:
        StoreFullError: there is no space left, or a quota is used up.
        StoreError: any other refusal.
    """
    try:
        yield
    except ImpartError:
        raise
    except OSError as error:
        if _is_elsewhere(error, inside):
            raise
        if error.errno in _FULL:
            raise StoreFullError(
                f"No space left while writing to {where}. Nothing half-written was published; free some space "
                "and run the same command again: finished blocks are kept."
            ) from error
        if is_transient(error):
            raise
        advice = " or change its permissions" if error.errno in _FORBIDDEN else ""
        raise StoreError(
            f"Cannot write to {where}: {error.strerror or error}. Choose another place{advice}."
        ) from error


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Give a folder that is gone when the block ends, where TMPDIR says; errors as in `disk_errors`."""
    with disk_errors("the scratch folder"):
        place = tempfile.gettempdir()
    where = f"the scratch folder {place} (TMPDIR names it)"
    with disk_errors(where):
        scratch = tempfile.TemporaryDirectory(prefix="impart-")
    folder = Path(scratch.name)
    with disk_errors(where, folder), scratch:
        yield folder


def _is_elsewhere(error: OSError, folder: Path | None) -> bool:
    """Whether an error names a file that is not in a folder."""
    if folder is None or not isinstance(error.filename, str | bytes):
        return False
    return not Path(os.fsdecode(error.filename)).is_relative_to(folder)
