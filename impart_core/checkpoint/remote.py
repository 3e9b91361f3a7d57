"""Checkpoints behind fsspec URLs (s3://…, memory://…), read by byte ranges only."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from impart_core.base.errors import CheckpointError
from impart_core.checkpoint.local import local_folder
from impart_core.checkpoint.source import Folder, SourceFile, no_folder
from impart_core.storage.failures import checkpoint_errors
from impart_core.storage.open import extras_of, open_url

# The largest range asked for at once: it is in memory twice, and asked for again as a whole when it fails.
_LARGEST_RANGE = 32 << 20
# What filesystems tell of a file that changes with its content, the surest first.
_STAMPS = ("ETag", "etag", "md5Hash", "mtime", "created", "LastModified")


@dataclass(frozen=True)
class RemoteFile(SourceFile):
    """A file that is fetched range by range: `fetch(start, end)` returns these bytes."""

    fetch: Callable[[int, int], bytes] = field(compare=False, repr=False)

    def read_into(self, start: int, buffer: memoryview) -> int:
        """Fill a buffer with the bytes from `start` on, and return how many there were."""
        for at in range(0, len(buffer), _LARGEST_RANGE):
            wanted = min(_LARGEST_RANGE, len(buffer) - at)
            with checkpoint_errors(self):
                data = self.fetch(start + at, start + at + wanted)
            if len(data) > wanted:
                raise CheckpointError(
                    f"{self} cannot be read in parts: {wanted:,} bytes were asked for and {len(data):,} came. "
                    "Use a place that serves byte ranges, or a local copy."
                )
            buffer[at : at + len(data)] = data
            if len(data) < wanted:
                return at + len(data)
        return len(buffer)

    def on_disk(self, scratch: Path) -> Path:
        """Return a copy in the scratch folder."""
        self.copy_to(scratch / self.location.rpartition("/")[2])
        return scratch / self.location.rpartition("/")[2]


def url_folder(url: str) -> Folder:
    """List the folder at an fsspec URL; one of this machine (file://…) is read as such.

    Raises:
        CheckpointError: the URL is malformed or of an unknown protocol, or the folder cannot be listed.
        ConfigError: IMPART_STORE_OPTIONS is malformed.
    """
    _require_plain(url)
    try:
        fs, root = open_url(url)
    except (ValueError, ImportError, TypeError) as error:
        raise CheckpointError(
            f"The checkpoint {url!r} cannot be opened: {error}. Give a folder, a Hub id or an fsspec URL such as s3://…"
        ) from error
    if isinstance(fs, LocalFileSystem):
        return local_folder(Path(root))
    location = url.rstrip("/")
    with checkpoint_errors(f"The checkpoint folder {location}"):
        try:
            fs.invalidate_cache(root)
            listed = {_name(info): info for info in fs.ls(root, detail=True) if str(info["name"]) != f"{root}/"}
        except FileNotFoundError as error:
            raise no_folder(location, "does not exist") from error
        if [str(info["name"]) for info in listed.values() if info["type"] == "file"] == [root]:
            raise no_folder(location, "is a file")
        return Folder(location, {name: _entry(fs, location, name, info) for name, info in sorted(listed.items())})


def _entry(fs: Any, location: str, name: str, info: Mapping[str, Any]) -> RemoteFile | None:
    if info["type"] != "file":
        return None
    path = str(info["name"])
    if info.get("size") is None:
        info = fs.info(path)
    stamp = next((str(info[key]) for key in _STAMPS if info.get(key)), None)
    return RemoteFile(f"{location}/{name}", int(info["size"]), stamp, partial(_fetch, fs, path))


def _fetch(fs: Any, path: str, start: int, end: int) -> bytes:
    # A filesystem that opens a file for this would by default read on beyond the end of the range.
    unbuffered = {} if fs.async_impl else {"cache_type": "none"}
    return bytes(fs.cat_file(path, start=start, end=end, **unbuffered))


def _name(info: Mapping[str, Any]) -> str:
    return str(info["name"]).rstrip("/").rpartition("/")[2]


def _require_plain(url: str) -> None:
    """Refuse a URL that carries more than a place: what it carries would end in logs and lists of runs."""
    try:
        extras = extras_of(url)
    except ValueError as error:
        raise CheckpointError(f"The checkpoint {url!r} is not a URL: {error}.") from error
    if extras:
        raise CheckpointError(
            f"The checkpoint's {url.partition('://')[0]}:// URL carries {extras}. Give the folder alone; "
            "credentials come from the environment (AWS_PROFILE and its like, or IMPART_STORE_OPTIONS)."
        )
