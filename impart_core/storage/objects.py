"""The few operations on named objects that the store is built from: in a folder, in S3, behind any other fsspec URL.

Paths are relative to the store's own prefix, with `/` between parts; nothing outside of it is ever touched.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from impart_core.base.errors import StoreError
from impart_core.storage.failures import Side, explained

R = TypeVar("R")
PROBES = "probes"
# What lies in a store: artifacts, and what goes with them.
STORE_FOLDERS = frozenset(("artifacts", "refs", "catalog", "pins", "sweeps", "claims", PROBES))
_PART = re.compile(r"[A-Za-z0-9._@-]{1,255}")


@dataclass(frozen=True)
class ObjectInfo:
    """An object's size in bytes, and when it was last written by the store's own clock."""

    size: int
    modified: datetime


class Objects(ABC):
    """Named objects under one prefix.

    Every method raises a `StoreError` that says what the store answered: `StoreUnreachableError` where the same may
    work later, `StoreDeniedError`, `StoreFullError`, else a plain one.
    """

    url: str
    is_local = False  # whether they are files of this machine

    @abstractmethod
    def put(self, path: str, source: Path, sha256: str) -> None:
        """Write an object from a local file: whole or not at all, its bytes checked on the way where that can be.

        Args:
            path: the object.
            source: the local file; not all of it is in memory at once.
            sha256: its digest (hex).
        """

    @abstractmethod
    def create(self, path: str, data: bytes) -> bool:
        """Write a small object if and only if its name is free; return whether it was, or held just these bytes."""

    @abstractmethod
    def replace(self, path: str, data: bytes, was: bytes | None) -> bool:
        """Overwrite a small object.

        Args:
            path: the object.
            data: its new content.
            was: what it held when it was read last; None where it was absent. Where the store can tell, an object
                that somebody else has written since is left alone.

        Returns:
            Whether it was written.
        """

    @abstractmethod
    def read(self, path: str, limit: int) -> bytes | None:
        """Return the first `limit` bytes of an object, or None where there is none."""

    def read_many(self, paths: Iterable[str], limit: int) -> dict[str, bytes]:
        """Return the first `limit` bytes of each object that there is: one by one, or many at a time."""
        found = ((path, self.read(path, limit)) for path in paths)
        return {path: data for path, data in found if data is not None}

    @abstractmethod
    def size(self, path: str) -> int | None:
        """Return an object's size in bytes, or None where there is none."""

    @abstractmethod
    def fetch(self, path: str, target: Path) -> str | None:
        """Copy an object to a local file; return its SHA-256 (hex), or None where there is none."""

    def local(self, path: str) -> Path | None:  # noqa: ARG002 - for those that have files
        """Return an object as a local file where it is one already."""
        return None

    @abstractmethod
    def exists(self) -> bool:
        """Return whether anything lies at the place itself: a folder, even if it is empty, or an object below it."""

    @abstractmethod
    def names(self, prefix: str) -> list[str]:
        """Return the names directly under a prefix, sorted; an absent prefix has none."""

    @abstractmethod
    def find(self, prefix: str) -> dict[str, ObjectInfo]:
        """Return every object under a prefix by its path, scratch of killed writers included.

        What has another name than anything that is ever written is left out.
        """

    @abstractmethod
    def delete(self, paths: Iterable[str]) -> None:
        """Delete objects; one that is absent already is no error."""

    @abstractmethod
    def now(self) -> datetime:
        """Return the time by the clock that dates the objects."""

    def unfinished(self) -> Mapping[str, datetime]:
        """Return when each upload began that was never finished, by a name for `abort`."""
        return {}

    def abort(self, uploads: Iterable[str]) -> None:
        """Abort unfinished uploads."""
        assert not list(uploads)

    def _if_there(self, ask: Callable[[], R]) -> R | None:
        """Return what a client answers, None where nothing is there; its failures become sentences."""
        with explained(Side.STORE, self.url):
            try:
                return ask()
            except (FileNotFoundError, NotADirectoryError):
                return None


def is_path(path: str) -> bool:
    """Return whether a path stays under the prefix, whatever becomes of it on the way to the store."""
    return all(_PART.fullmatch(part) and part.strip(".") for part in path.split("/"))


def require_path(path: str) -> str:
    """Return a path that stays under the prefix; see `is_path`.

    Raises:
        StoreError: it does not.
    """
    if is_path(path):
        return path
    raise StoreError(f"{path!r} is no path inside a store; it may hold letters, digits and . _ @ - between slashes.")
