"""Objects behind fsspec URLs: S3 with all that it can promise, any other place with what fsspec offers."""

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from itertools import chain, islice, pairwise, zip_longest
from pathlib import Path
from typing import Any

from impart_core.base.errors import StoreUnreachableError
from impart_core.storage.failures import Side, explained
from impart_core.storage.objects import ObjectInfo, Objects, is_path, require_path

# One part is in memory at a time; S3 allows 10,000 of them, of 5 MiB or more.
_PART_BYTES = 16 << 20
_AT_ONCE = 64
_READ_SECONDS = 20.0
_PATIENCE = 4  # read time-outs that a request may take with all that s3fs tries again
_MODIFIED = ("LastModified", "mtime", "created", "last_modified")
_TAKEN = {"PreconditionFailed", "412"}
_MOST_DELETED = 1000
_PAGE = 1000  # what S3 gives at most
_STRETCHES, _LISTS_AT_ONCE = "13579bd", 4  # how they begin: after two digits each


class RemoteObjects(Objects):
    """Objects behind any fsspec filesystem."""

    def __init__(self, url: str, fs: Any, root: str) -> None:
        """Name a prefix; nothing is asked of the server yet."""
        self.url, self._fs, self._root = url, fs, root

    def put(self, path: str, source: Path, sha256: str) -> None:  # noqa: ARG002 - not every place checks it
        """Upload a file."""
        with explained(Side.STORE, self.url):
            self._fs.put_file(str(source), self._key(path))

    def create(self, path: str, data: bytes) -> bool:
        """Write an object under a name that is free.

        A call that a client repeats by itself because its answer was lost finds its own object.
        """
        with explained(Side.STORE, self.url):
            try:
                self._create(self._key(path), data)
            except OSError as error:
                if not _is_taken(error):
                    raise
                return self.read(path, len(data) + 1) == data
        return True

    def replace(self, path: str, data: bytes, was: bytes | None) -> bool:  # noqa: ARG002 - not every place compares
        """Overwrite an object."""
        with explained(Side.STORE, self.url):
            self._fs.pipe_file(self._key(path), data)
        return True

    def read(self, path: str, limit: int) -> bytes | None:
        """Read the beginning of an object with one request."""
        return self._if_there(lambda: self._range(self._key(path), 0, limit))

    def read_many(self, paths: Iterable[str], limit: int) -> dict[str, bytes]:
        """Read the beginnings of many objects, some dozens at a time where the client can."""
        found: dict[str, bytes] = {}
        for batch in _batches(paths, _AT_ONCE):
            with explained(Side.STORE, self.url):
                answers = self._fs.cat_ranges([self._key(path) for path in batch], 0, limit)
                for path, answer in zip(batch, answers, strict=True):
                    if not isinstance(answer, FileNotFoundError | NotADirectoryError):
                        found[path] = _bytes_of(answer)
        return found

    def size(self, path: str) -> int | None:
        """Ask for an object's size."""
        return self._if_there(lambda: int(self._fs.size(self._key(path))))

    def fetch(self, path: str, target: Path) -> str | None:
        """Download an object range by range, so that one that is cut is asked for again alone."""
        digest, key, start = hashlib.sha256(), self._key(path), 0
        with target.open("wb") as file:
            while True:
                piece = self._if_there(partial(self._range, key, start, start + _PART_BYTES))
                if piece is None:
                    return None
                digest.update(piece)
                file.write(piece)
                start, last = start + len(piece), len(piece) < _PART_BYTES
                del piece  # else it would still be there while the next one comes
                if last:
                    return digest.hexdigest()

    def exists(self) -> bool:
        """List what is directly under it."""
        with explained(Side.STORE, self.url):
            try:
                return bool(self._fs.ls(self._root, detail=False))
            except (FileNotFoundError, NotADirectoryError):
                return False

    def names(self, prefix: str) -> list[str]:
        """List what is directly under a prefix."""
        key = self._key(prefix)
        listed = self._if_there(lambda: self._fs.ls(key, detail=False)) or ()
        # Some servers list a folder that is empty again as an object in itself.
        return sorted(path.rpartition("/")[2] for path in {str(path).rstrip("/") for path in listed} - {key})

    def find(self, prefix: str) -> dict[str, ObjectInfo]:
        """List all that is under a prefix."""
        listed = self._if_there(lambda: self._fs.find(self._key(prefix), detail=True)) or {}
        found = {str(path)[len(self._root) + 1 :]: info for path, info in listed.items()}
        return {
            path: ObjectInfo(int(info["size"] or 0), _modified(info))
            for path, info in found.items()
            if info.get("type") != "directory" and is_path(path)
        }

    def delete(self, paths: Iterable[str]) -> None:
        """Delete objects one by one."""
        for path in paths:
            with explained(Side.STORE, self.url), suppress(FileNotFoundError):
                self._fs.rm_file(self._key(path))

    def now(self) -> datetime:
        """Return this machine's time: not every place tells its own."""
        return datetime.now(UTC)

    def _create(self, key: str, data: bytes) -> None:
        self._fs.pipe_file(key, data, mode="create")

    def _range(self, key: str, start: int, end: int) -> bytes:
        try:
            return bytes(self._fs.cat_file(key, start=start, end=end))
        except OSError as error:
            return _bytes_of(error)

    def _key(self, path: str) -> str:
        return f"{self._root}/{require_path(path)}"


class S3Objects(RemoteObjects):
    """Objects in S3: checksums sent with what is written and checked by the server, writes on a condition."""

    def put(self, path: str, source: Path, sha256: str) -> None:
        """Upload a file in parts of 16 MiB, each with its SHA-256; an upload that fails is aborted."""
        where = self._where(path)
        with explained(Side.STORE, self.url), source.open("rb") as file:
            first = file.read(_PART_BYTES)
            if len(first) < _PART_BYTES:
                checksum = base64.b64encode(bytes.fromhex(sha256)).decode()
                self._call("put_object", **where, Body=first, ChecksumSHA256=checksum)
                return
            upload = self._call("create_multipart_upload", **where, ChecksumAlgorithm="SHA256")
            named = {**where, "UploadId": upload["UploadId"]}
            pieces = chain([first], iter(partial(file.read, _PART_BYTES), b""))
            try:
                parts = [self._put_part(named, number, part) for number, part in enumerate(pieces, 1)]
                self._call("complete_multipart_upload", **named, MultipartUpload={"Parts": parts})
            except BaseException:
                with suppress(Exception):  # whoever is to blame, the first failure is the one to tell
                    self._call("abort_multipart_upload", **named)
                raise

    def _call(self, method: str, **arguments: Any) -> Any:
        """Make a request and give it up after a while.

        A server that takes an upload and says nothing would be waited for without end: aiohttp's read time-out
        does not run while it waits to be told to go on.
        """
        patience = float(self._fs.config_kwargs.get("read_timeout", _READ_SECONDS))
        return self._fs.call_s3(method, **arguments, timeout=_PATIENCE * patience)

    def _put_part(self, named: Mapping[str, str], number: int, part: bytes) -> dict[str, Any]:
        checksum = _checksum(part)
        done = self._call("upload_part", **named, PartNumber=number, Body=part, ChecksumSHA256=checksum)
        return {"PartNumber": number, "ETag": done["ETag"], "ChecksumSHA256": checksum}

    def replace(self, path: str, data: bytes, was: bytes | None) -> bool:
        """Overwrite an object if it still is what was read; how that is told is its ETag."""
        where = self._where(path)
        with explained(Side.STORE, self.url):
            try:
                condition = {"IfNoneMatch": "*"} if was is None else {"IfMatch": self._etag(path, was)}
                self._call("put_object", **where, Body=data, ChecksumSHA256=_checksum(data), **condition)
            except (FileNotFoundError, OSError) as error:
                if not _is_taken(error) and not isinstance(error, FileNotFoundError):
                    raise
                return False
        return True

    def _etag(self, path: str, expected: bytes) -> str:
        """Return the ETag of an object that holds the expected bytes; one written after it was asked for has another.

        Raises:
            FileNotFoundError: there is none.
            FileExistsError: it holds others by now.
        """
        etag = str(self._call("head_object", **self._where(path))["ETag"])
        if (self.read(path, len(expected) + 1) or b"")[: len(expected)] != expected:
            raise FileExistsError(path)
        return etag

    def delete(self, paths: Iterable[str]) -> None:
        """Delete objects, a thousand with one request."""
        bucket = self._where("any")["Bucket"]
        for batch in _batches(paths, _MOST_DELETED):
            objects = [{"Key": self._where(path)["Key"]} for path in batch]
            with explained(Side.STORE, self.url):
                done = self._call("delete_objects", Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
            for error in done.get("Errors", ()):
                raise StoreUnreachableError(
                    f"The store {self.url} did not delete {error.get('Key')}: {error.get('Message')}. Run it again."
                )

    def now(self) -> datetime:
        """Return the time that the server gives with an answer."""
        where = self._where("any")
        with explained(Side.STORE, self.url):
            answer = self._call("list_objects_v2", Bucket=where["Bucket"], Prefix=where["Key"], MaxKeys=1)
        date = answer["ResponseMetadata"]["HTTPHeaders"]["date"]
        return datetime.strptime(date, "%a, %d %b %Y %H:%M:%S %Z").replace(tzinfo=UTC)

    def find(self, prefix: str) -> dict[str, ObjectInfo]:
        """List all that is under a prefix: a store of a thousand models has a hundred thousand objects.

        After a full page, what follows it is listed in several stretches side by side, each page by page. Names of
        artifacts are hexadecimal, so that stretches are about as long. A server that gives names in no order, as some
        buckets do, is asked for one page after the other.

        The client's own listing takes twice the time, for what it remembers of folders; and reading dates in any form,
        as it does by default, takes three quarters of what is left.
        """
        with explained(Side.STORE, self.url):
            self._fs.connect()
            self._fs.session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_date)
        where = self._where(prefix)
        folder, cut = f"{where['Key']}/", len(where["Key"]) - len(prefix)
        asked = {"Bucket": where["Bucket"], "Prefix": folder, "MaxKeys": _PAGE}
        first = self._page(asked)
        keys = [entry["Key"] for entry in first.get("Contents", ())]
        found = _infos(first, cut)
        if first.get("IsTruncated"):
            in_order = bool(keys) and all(one < other for one, other in pairwise(keys))
            # No path has a ~: a server on a file system that starts after a folder leaves out what is in that.
            edges = [edge for digit in _STRETCHES if (edge := f"{folder}{digit}~") > keys[-1]] if in_order else []
            begins = [_following(first), *({"StartAfter": edge} for edge in edges)]
            stretches = [({**asked, **begin}, end, cut) for begin, end in zip_longest(begins, edges)]
            with ThreadPoolExecutor(_LISTS_AT_ONCE) as pool:
                for some in pool.map(lambda stretch: self._stretch(*stretch), stretches):
                    found.update(some)
        return found

    def _stretch(self, asked: dict[str, Any], end: str | None, cut: int) -> dict[str, ObjectInfo]:
        """List page by page up to a key, itself included; None: to the last."""
        found: dict[str, ObjectInfo] = {}
        while page := self._page(asked):
            entries = page.get("Contents", [])
            found.update(_infos(page, cut, end))
            if not page.get("IsTruncated") or (end is not None and entries and entries[-1]["Key"] > end):
                break
            asked = {**asked, **_following(page)}
        return found

    def _page(self, asked: dict[str, Any]) -> dict[str, Any]:
        return self._if_there(lambda: self._call("list_objects_v2", **asked)) or {}

    def unfinished(self) -> Mapping[str, datetime]:
        """List the multipart uploads under the prefix that were neither completed nor aborted."""
        bucket, _, root = self._root.partition("/")
        with explained(Side.STORE, self.url):
            found = self._call("list_multipart_uploads", Bucket=bucket, Prefix=f"{root}/" if root else "")
        return {f"{upload['Key']}\n{upload['UploadId']}": upload["Initiated"] for upload in found.get("Uploads", ())}

    def abort(self, uploads: Iterable[str]) -> None:
        """Abort uploads that `unfinished` listed."""
        bucket = self._where("any")["Bucket"]
        for upload in uploads:
            key, upload_id = upload.split("\n")
            with explained(Side.STORE, self.url), suppress(FileNotFoundError):
                self._call("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload_id)

    def _create(self, key: str, data: bytes) -> None:
        bucket, _, name = key.partition("/")
        self._call("put_object", Bucket=bucket, Key=name, Body=data, ChecksumSHA256=_checksum(data), IfNoneMatch="*")

    def _where(self, path: str) -> dict[str, str]:
        bucket, _, key = self._key(path).partition("/")
        return {"Bucket": bucket, "Key": key}


def _batches(paths: Iterable[str], size: int) -> Iterator[list[str]]:
    rest = iter(paths)
    while batch := list(islice(rest, size)):
        yield batch


def _following(page: Mapping[str, Any]) -> dict[str, Any]:
    return {"ContinuationToken": page["NextContinuationToken"]}


def _infos(page: Mapping[str, Any], cut: int, end: str | None = None) -> dict[str, ObjectInfo]:
    """Return the objects of a page up to a key by path, which is the key without its first characters."""
    return {
        path: ObjectInfo(int(entry["Size"]), entry["LastModified"])
        for entry in page.get("Contents", ())
        if (end is None or entry["Key"] <= end) and is_path(path := entry["Key"][cut:])
    }


def _checksum(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def _bytes_of(answer: bytes | Exception) -> bytes:
    """Return what was read of a range; none where the object ends before it; any other failure is raised."""
    if not isinstance(answer, Exception):
        return bytes(answer)
    if _code(answer) == "InvalidRange":
        return b""
    raise answer


def _code(error: BaseException) -> str | None:
    answer = getattr(error.__cause__, "response", None)
    return str(answer["Error"]["Code"]) if isinstance(answer, dict) and "Error" in answer else None


def _date(text: str) -> datetime:
    """Return a date of an answer: in ISO 8601 inside it, in RFC 822 in its headers."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = parsedate_to_datetime(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _is_taken(error: OSError) -> bool:
    """Return whether a conditional write was refused; servers and s3fs tell it in different ways."""
    return isinstance(error, FileExistsError) or _code(error) in _TAKEN


def _modified(info: Mapping[str, Any]) -> datetime:
    found = next((info[key] for key in _MODIFIED if info.get(key)), None)
    if isinstance(found, datetime):
        return found if found.tzinfo else found.replace(tzinfo=UTC)
    return datetime.fromtimestamp(float(found), UTC) if isinstance(found, int | float) else datetime.now(UTC)
