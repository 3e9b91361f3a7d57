"""Objects as files in a folder of this machine, or one that it has mounted."""

import contextlib
import os
import stat
import uuid
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

from impart_core.base.errors import CorruptArtifactError, StoreError
from impart_core.base.files import copy_hashed, disk_errors, sync_folder, write_atomically
from impart_core.storage.exclusive import place_exclusively
from impart_core.storage.failures import Side, explained
from impart_core.storage.objects import PROBES, ObjectInfo, Objects, R, is_path, require_path

_ATTEMPTS = 20
_KINDS = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}


class FolderObjects(Objects):
    """Objects in a folder. A file appears under its name whole or not at all, and is on disk by then.

    So are its name and those of all folders up to the root once it was created: a power loss takes neither what a
    manifest or a name was written for, nor these themselves.
    """

    is_local = True

    def __init__(self, url: str, root: str) -> None:
        """Name a folder; nothing is read or made yet."""
        self.url, self._root = url, Path(root)

    def put(self, path: str, source: Path, sha256: str) -> None:
        """Copy a file beside its place, flush it to disk, then move it there."""
        place = self._place(path)
        scratch = place.with_name(f".{place.name}.{uuid.uuid4().hex}.tmp")
        with disk_errors(f"the store {self.url}"):
            try:
                if self._in_folder(place.parent, lambda: copy_hashed(source, scratch)) != sha256:
                    raise StoreError(f"{source} changed while it was being copied to {place}. Run it again.")
                scratch.replace(place)
                sync_folder(place.parent)
            finally:
                scratch.unlink(missing_ok=True)

    def create(self, path: str, data: bytes) -> bool:
        """Write a file and give it its name, which fails where the name is taken."""
        place = self._place(path)

        def write() -> bool:
            try:
                write_atomically(place, data, place=place_exclusively)
            except FileExistsError:
                return False
            return True

        with disk_errors(f"the store {self.url}"):
            free = self._in_folder(place.parent, write)
            # Whoever made the folders above, or the file, may have been killed before they were on disk.
            for folder in place.parents[1 if free else 0 : path.count("/") + 1]:
                sync_folder(folder)
            return free

    def replace(self, path: str, data: bytes, was: bytes | None) -> bool:  # noqa: ARG002 - a folder cannot compare
        """Write a file beside the present one and move it over that."""
        place = self._place(path)
        with disk_errors(f"the store {self.url}"):
            self._in_folder(place.parent, lambda: write_atomically(place, data))
        return True

    def read(self, path: str, limit: int) -> bytes | None:
        """Read the beginning of a file."""
        place = self._place(path)

        def beginning() -> bytes | None:
            if place.exists() and not place.is_file():  # a pipe would be waited for without end
                return None
            with place.open("rb") as file:
                return file.read(min(limit, os.fstat(file.fileno()).st_size))  # what is asked for is allocated

        return self._if_there(beginning)

    def size(self, path: str) -> int | None:
        """Return a file's size."""
        place = self._place(path)
        return self._if_there(lambda: _regular(place).st_size)

    def fetch(self, path: str, target: Path) -> str | None:
        """Copy a file."""
        place = self._place(path)
        return self._if_there(lambda: copy_hashed(place, target) if _regular(place) else None)

    def local(self, path: str) -> Path | None:
        """Return the file."""
        return self._place(path)

    def exists(self) -> bool:
        """Look for the folder."""
        with explained(Side.STORE, self.url):
            return self._root.exists()

    def names(self, prefix: str) -> list[str]:
        """List a folder."""
        return sorted(entry.name for entry in self._entries(prefix))

    def find(self, prefix: str) -> dict[str, ObjectInfo]:
        """Walk a folder."""
        found, folders = {}, [prefix]
        while folders:
            folder = folders.pop()
            for entry in self._entries(folder):
                path = f"{folder}/{entry.name}"
                if not is_path(path):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                    continue
                with contextlib.suppress(FileNotFoundError), explained(Side.STORE, self.url):  # scratch, gone meanwhile
                    status = entry.stat(follow_symlinks=False)
                    found[path] = ObjectInfo(status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))
        return found

    def _entries(self, folder: str) -> "list[os.DirEntry[str]]":
        with explained(Side.STORE, self.url):
            try:
                with os.scandir(self._place(folder)) as entries:
                    return list(entries)
            except FileNotFoundError:
                return []
            except NotADirectoryError as error:
                raise StoreError(f"The store {self.url} is a file, or lies below one. Give a folder.") from error

    def delete(self, paths: Iterable[str]) -> None:
        """Delete files, and folders that are empty then."""
        with explained(Side.STORE, self.url):
            for path in paths:
                place = self._place(path)
                place.unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    while place.parent != self._root:
                        place = place.parent
                        place.rmdir()

    def now(self) -> datetime:
        """Date a probe file."""
        probe = f"{PROBES}/{uuid.uuid4().hex}"
        place = self._place(probe)
        with disk_errors(f"the store {self.url}"):
            self._in_folder(place.parent, place.touch)  # nobody needs it after a power loss
        try:
            return datetime.fromtimestamp(place.stat().st_mtime, UTC)
        finally:
            self.delete([probe])

    def _place(self, path: str) -> Path:
        return self._root / require_path(path)

    def _in_folder(self, folder: Path, write: Callable[[], R]) -> R:
        """Make a folder and write in it, again where somebody's `delete` took it away for being empty in between."""
        for _ in range(_ATTEMPTS):
            try:
                self._make_root()
                folder.mkdir(parents=True, exist_ok=True)
                return write()
            except FileNotFoundError:
                continue
            except FileExistsError:  # `mkdir` found it there, and then no longer
                if folder.exists() and not folder.is_dir():
                    raise
        return write()

    def _make_root(self) -> None:
        """Make the store's own folder, and see to it that it is on disk with all that were made for it."""
        missing = [folder for folder in (self._root, *self._root.parents) if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            sync_folder(folder.parent)


def _regular(place: Path) -> os.stat_result:
    """Return a file's status; a pipe or a device would be waited for, or read, without end.

    Raises:
        CorruptArtifactError: it is no file.
    """
    status = place.stat()
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise CorruptArtifactError(f"{place} is a {_KINDS.get(kind, 'device')} where a file should be. Delete it.")
    return status
