"""A finished file gets its name only if that is free, whatever the file system can do.

A hard link is the usual way. exFAT, FAT, many SMB shares and FUSE mounts have none.
"""

import ctypes
import errno
import fcntl
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

# How a system says that it, or a file system, lacks a call or a flag of it. FAT answers EPERM to `link`.
_LACKS = frozenset(
    {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EXDEV}
)
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1  # Linux: fcntl.h, fs.h
_RENAME_EXCL = 4  # macOS: stdio.h


def place_exclusively(scratch: Path, place: Path) -> None:
    """Give a finished file its name; `scratch` lies beside it, and may be left over.

    The first of three ways that the file system has is taken: a hard link; a rename that replaces nothing; a rename
    under a lock on the folder. Each leaves the name absent or the whole file under it, also when the process dies.
    The lock holds among the processes of one machine; file systems that several machines write have a way before it.

    Raises:
        FileExistsError: the name is taken.
        OSError: the file system has none of the three, or refuses.
    """
    try:
        os.link(scratch, place)
        return
    except OSError as error:
        if error.errno not in _LACKS:
            raise
        refused = error
    if not (_rename_exclusively(scratch, place) or _rename_locked(scratch, place)):
        raise OSError(
            errno.ENOTSUP, "its file system has no hard links, no rename that replaces nothing, and no locks"
        ) from refused


def _rename_exclusively(scratch: Path, place: Path) -> bool:
    """Rename a file unless the name is taken; return False where the system or the file system cannot."""
    rename = _rename_call()
    if rename is None:
        return False
    ctypes.set_errno(0)
    if rename(os.fsencode(scratch), os.fsencode(place)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _LACKS:
        return False
    raise OSError(number, os.strerror(number), str(scratch), None, str(place))


@cache
def _rename_call() -> Any:
    """Return the system's rename that replaces nothing, as a function of two paths; None where it has none."""
    library = ctypes.CDLL(None, use_errno=True)
    try:
        if sys.platform == "darwin":
            call = library.renamex_np
            return lambda source, target: call(source, target, ctypes.c_uint(_RENAME_EXCL))
        call = library.renameat2
    except AttributeError:
        return None
    here = ctypes.c_int(_AT_FDCWD)
    return lambda source, target: call(here, source, here, target, ctypes.c_uint(_RENAME_NOREPLACE))


def _rename_locked(scratch: Path, place: Path) -> bool:
    """Rename a file unless the name is taken, under a lock on its folder; return False where folders have no locks.

    `scratch` keeps the folder from being deleted for being empty, so that all lock the same one. The lock ends with
    the process.
    """
    folder = os.open(place.parent, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno in _LACKS or error.errno in (errno.EBADF, errno.ENOLCK):
                return False
            raise
        if os.path.lexists(place):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(place))
        scratch.rename(place)
        return True
    finally:
        os.close(folder)
