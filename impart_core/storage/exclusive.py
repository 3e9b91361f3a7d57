"""A finished file gets its name only if that is free, whatever the file system can do.

A hard link is the usual way. exFAT, FAT, many SMB shares and FUSE mounts have none.
"""

import ctypes
import errno
import fcntl
import os
import sys
from pathlib import Path

from impart_core.base.files import renameat2

# How a system says that it, or a file system, lacks a call or a flag of it. FAT answers EPERM to `link`.
_LACKS = frozenset(
    {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EXDEV}
)
_RENAME_NOREPLACE = 1  # Linux: fs.h
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
    number = _renamex_np(scratch, place) if sys.platform == "darwin" else renameat2(scratch, place, _RENAME_NOREPLACE)
    if number is None or number in _LACKS:
        return False
    if number == 0:
        return True
    raise OSError(number, os.strerror(number), str(scratch), None, str(place))


def _renamex_np(source: Path, target: Path) -> int:
    """Rename as macOS does without replacing; return 0 or the number of its error."""
    ctypes.set_errno(0)
    rename = ctypes.CDLL(None, use_errno=True).renamex_np
    done = rename(os.fsencode(source), os.fsencode(target), ctypes.c_uint(_RENAME_EXCL))
    return 0 if done == 0 else ctypes.get_errno()


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
