"""Folders that appear whole: beside their place until they are, and in the place of an older one without a loss.

.<name>.<uuid>.tmp/lock   held by the process that works here: a folder whose lock is free was left by a killed one
.<name>.<uuid>.tmp/new    the folder in the making
.<name>.<uuid>.tmp/old    the one that it replaces, between two renames, where both cannot be swapped in one step

Wherever the process is killed, the old or the new folder is there whole; the next run for the same place removes the
rest, and puts an old folder back that was moved aside.
"""

import errno
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from impart_core.base.errors import OutputExistsError, StoreError
from impart_core.base.files import disk_errors, renameat2, sync_file, sync_folder

_EXCHANGE = 2  # Linux: fs.h
_CONFIG, _WEIGHTS = "config.json", "*.safetensors"  # every model has both; an application may have the first
_LOCK, _NEW, _OLD = "lock", "new", "old"


def check_output_folder(out: Path, overwrite: bool = False) -> None:
    """Refuse an output folder that already holds files.

    Args:
        out: the folder.
        overwrite: whether a model there may be replaced; anything else was not meant.

    Raises:
        OutputExistsError: it must not be made here.
        StoreError: it cannot be made here.
    """
    with disk_errors(out):
        _require_room(out)
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return
        if out.is_file() or not overwrite:
            raise OutputExistsError(
                f"{out} already holds files. Choose another folder, or let it be replaced (overwrite=True, on the "
                "command line --overwrite)."
            )
        if not (out / _CONFIG).is_file() or not any(out.glob(_WEIGHTS)):
            raise OutputExistsError(
                f"{out} holds files, but no model (that has {_CONFIG} and {_WEIGHTS}), and is not overwritten. Choose "
                "another folder, or empty this one."
            )


def _require_room(out: Path) -> None:
    """Refuse a place where no folder can be made; nothing is written to find out."""
    try:
        place = out.resolve().parent
    except (RuntimeError, ValueError) as error:  # links that lead in a circle; a name that no file system has
        raise StoreError(f"{str(out)!r:.100} is no place for a folder: {error}. Choose another.") from error
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise StoreError(f"{out} cannot be made: {place} is a file. Choose another folder.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise StoreError(f"{out} cannot be made: {place} cannot be written to. Choose another folder.")


def require_apart(out: Path, others: Mapping[str, Path]) -> None:
    """Refuse an output folder that is, or holds, what must stay: other places, and the working directory.

    Args:
        out: the folder.
        others: places by what lies there; nothing may be made inside of one, either.

    Raises:
        OutputExistsError: naming what would be lost.
    """
    made = out.resolve()
    places = {what: place.resolve() for what, place in others.items()}
    for what, place in {**places, "the working directory": Path.cwd()}.items():
        if made == place or made in place.parents:
            relation = "is" if made == place else f"holds {place}:"
            raise OutputExistsError(f"{out} {relation} {what}. Choose another folder.")
    for what, place in places.items():
        if place in made.parents:
            raise OutputExistsError(f"{out} lies inside {what}, {place}. Choose another folder.")


@contextmanager
def new_folder(out: Path, overwrite: bool = False) -> Iterator[Path]:
    """Give a folder that takes the place of `out` when the block ends well, and vanishes when it does not.

    Raises:
        OutputExistsError: see `check_output_folder`; or somebody else has made it meanwhile.
        StoreError: it cannot be written.
    """
    check_output_folder(out, overwrite)
    out = out.resolve()  # of a link, what it leads to is replaced
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        _clean_up(out)
        check_output_folder(out, overwrite)  # which may be back now
        with _work_folder(out) as work:
            made = work / _NEW
            made.mkdir()
            yield made
            _put(made, out, work / _OLD, overwrite)


def _put(made: Path, out: Path, aside: Path, overwrite: bool) -> None:
    if not overwrite or not out.exists():
        try:
            made.rename(out)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise OutputExistsError(f"{out} was made by somebody else meanwhile. Choose another folder.") from error
        return
    for path in filter(Path.is_file, made.rglob("*")):  # before the old one goes
        sync_file(path)
    sync_folder(made)
    if renameat2(made, out, _EXCHANGE) != 0:  # the system cannot swap both in one step
        out.rename(aside)
        made.rename(out)
    sync_folder(out.parent)


@contextmanager
def _work_folder(out: Path) -> Iterator[Path]:
    """Give a folder beside `out` that is locked as long as the block lasts, and gone afterwards."""
    lock = None
    while lock is None:  # a clean-up may come between both steps
        work = out.with_name(f".{out.name}.{uuid.uuid4().hex}.tmp")
        work.mkdir()
        lock = _lock(work / _LOCK, wait=True)
    try:
        yield work
    finally:
        _remove(work, out)
        os.close(lock)


def _clean_up(out: Path) -> None:
    """Remove what killed runs for the same place have left."""
    own = re.compile(rf"\.{re.escape(out.name)}\.[0-9a-f]{{32}}\.tmp")
    for path in sorted(out.parent.iterdir()):
        if own.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            lock = _lock(path / _LOCK, wait=False)
            if lock is not None:
                _remove(path, out)
                os.close(lock)


def _remove(work: Path, out: Path) -> None:
    """Remove a work folder; an older one that was moved aside goes back unless there is a new one."""
    if (work / _OLD).exists() and not out.exists():
        (work / _OLD).rename(out)
    shutil.rmtree(work, ignore_errors=True)


def _lock(path: Path, *, wait: bool) -> int | None:
    """Return the file descriptor of a lock that is held until it is closed; None where others hold it or it is gone.

    Where the filesystem has no locks, whoever waits goes on without one, and nobody else takes the folder for left.
    """
    try:
        opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        if wait:
            return opened
        os.close(opened)
        return None
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(opened), path.stat()):
            return opened
    os.close(opened)
    return None
