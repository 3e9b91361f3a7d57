"""Checkpoints behind fsspec URLs (s3://…, memory://…), read by byte ranges only."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from impart_core.base.errors import CheckpointError, ImpartError
from impart_core.checkpoint.local import local_folder
from impart_core.checkpoint.source import Folder, SourceFile, no_folder
from impart_core.checkpoint.spool import keep, read_kept
from impart_core.storage.failures import Side, explain, explained
from impart_core.storage.open import open_url, require_plain_url

# The largest range asked for at once: it is in memory twice, and asked for again as a whole when it fails.
_LARGEST_RANGE = 32 << 20
# What filesystems tell of a file that changes with its content, the surest first. A modification time (mtime, of SFTP
# and HDFS) does not: whoever copies a file may set it. Where there is nothing else, files are read.
_STAMPS = ("ETag", "etag", "md5Hash", "created", "LastModified")


@dataclass(frozen=True)
class RemoteFile(SourceFile):
    """A file that is fetched range by range."""

    @abstractmethod
    def fetch(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` to before `end`, fewer where the file ends."""

    def read_into(self, start: int, buffer: memoryview) -> int:
        """Fill a buffer with the bytes from `start` on, and return how many there were.

        What a run has read before is not fetched again; see `spool`.
        """
        version = (self.address, self.size, self.stamp)
        if self.stamp is not None and read_kept(version, start, buffer):
            return len(buffer)
        for at in range(0, len(buffer), _LARGEST_RANGE):
            wanted = min(_LARGEST_RANGE, len(buffer) - at)
            with explained(Side.CHECKPOINT, self):
                data = self.fetch(start + at, start + at + wanted)
            if len(data) > wanted:
                raise CheckpointError(
                    f"{self} cannot be read in parts: {wanted:,} bytes were asked for and {len(data):,} came. "
                    "Use a place that serves byte ranges, or a local copy."
                )
            buffer[at : at + len(data)] = data
            if self.stamp is not None:
                keep(version, start + at, data)
            if len(data) < wanted:
                return at + len(data)
        return len(buffer)


@dataclass(frozen=True)
class UrlFile(RemoteFile):
    """A file behind an fsspec URL: the folder's, and the path that its filesystem knows the file by."""

    folder: str
    path: str

    def fetch(self, start: int, end: int) -> bytes:
        """Ask the filesystem for a range; opening that again costs nothing, as fsspec keeps them."""
        fs, _ = open_url(self.folder)
        # A filesystem that opens a file for this would by default read on beyond the end of the range.
        unbuffered = {} if fs.async_impl else {"cache_type": "none"}
        return bytes(fs.cat_file(self.path, start=start, end=end, **unbuffered))


def url_folder(url: str) -> Folder:
    """List the folder at an fsspec URL; one of this machine (file://…) is read as such.

    Raises:
        CheckpointError: the URL is malformed or of an unknown protocol, or the folder cannot be listed.
        ConfigError: IMPART_STORE_OPTIONS is malformed.
    """
    require_plain_url(url, "checkpoint", CheckpointError)
    try:
        fs, root = open_url(url)
    except (ValueError, ImportError, TypeError) as error:
        raise CheckpointError(
            f"The checkpoint {url!r} cannot be opened: {error}. Give a folder, a Hub id or an fsspec URL such as s3://…"
        ) from error
    except ImpartError:
        raise
    except Exception as error:  # some file systems connect, or read an archive, when they are opened
        raise explain(error, Side.CHECKPOINT, f"The checkpoint {url}") from error
    if isinstance(fs, LocalFileSystem):
        return local_folder(Path(root))
    location = url.rstrip("/")
    with explained(Side.CHECKPOINT, f"The checkpoint folder {location}"):
        try:
            fs.invalidate_cache(root)
            listed = {_name(info): info for info in fs.ls(root, detail=True) if str(info["name"]) != f"{root}/"}
        except FileNotFoundError as error:
            raise no_folder(location, "does not exist") from error
        if [str(info["name"]) for info in listed.values() if info["type"] == "file"] == [root]:
            raise no_folder(location, "is a file")
        return Folder(location, {name: _entry(fs, location, name, info) for name, info in sorted(listed.items())})


def _entry(fs: Any, location: str, name: str, info: Mapping[str, Any]) -> UrlFile | None:
    if info["type"] != "file":
        return None
    path = str(info["name"])
    if info.get("size") is None:
        info = fs.info(path)
    stamp = next((str(info[key]) for key in _STAMPS if info.get(key)), None)
    return UrlFile(f"{location}/{name}", int(info["size"]), stamp, location, path)


def _name(info: Mapping[str, Any]) -> str:
    return str(info["name"]).rstrip("/").rpartition("/")[2]
