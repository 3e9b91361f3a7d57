"""Stores in a folder and in S3 that are looked at from outside: as objects, without the program that wrote them."""

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support import Environment

QUICK = {"IMPART_STORE_OPTIONS": json.dumps({"config_kwargs": {"connect_timeout": 2, "read_timeout": 3}})}


@dataclass(frozen=True)
class Place:
    """A store, and what a command needs to reach it.

    Attributes:
        url: the store.
        environment: variables of commands that use it.
        server: variables that point a client to its server past any proxy; none where it is a folder.
    """

    url: str
    environment: Environment
    server: Mapping[str, str] = field(default_factory=dict)

    def objects(self) -> dict[str, bytes]:
        """Return all that it holds by path, but for scratch files."""
        if not self.server:
            found = {}
            for path in _files_under(self.url):
                with suppress(FileNotFoundError):  # scratch files come and go while a run writes
                    found[str(path.relative_to(self.url))] = path.read_bytes()
        else:
            client, root = client_of(self.server), self.url.removeprefix("s3://")
            paths = [path for path, info in client.find(root, detail=True).items() if info["type"] == "file"]
            found = {}
            with suppress(FileNotFoundError):  # where all of it vanishes meanwhile
                read = client.cat(paths, on_error="omit") if paths else {}
                found = {path.removeprefix(f"{root}/"): data for path, data in read.items()}
        return {path: data for path, data in sorted(found.items()) if not path.rpartition("/")[2].startswith(".")}

    def written(self) -> dict[str, object]:
        """Return when each object was last written."""
        if not self.server:
            paths = [path for path in _files_under(self.url) if not path.name.startswith(".")]
            return {str(path.relative_to(self.url)): path.stat().st_mtime_ns for path in paths}
        root = self.url.removeprefix("s3://")
        found = client_of(self.server).find(root, detail=True)
        files = {path: info for path, info in found.items() if info["type"] == "file"}
        return {path.removeprefix(f"{root}/"): info["LastModified"] for path, info in files.items()}

    def write(self, path: str, data: bytes) -> None:
        """Put an object's content in its place, past the program."""
        if self.server:
            client_of(self.server).pipe_file(f"{self.url.removeprefix('s3://')}/{path}", data)
        else:
            (Path(self.url) / path).write_bytes(data)

    def remove(self, path: str) -> None:
        """Take an object away, past the program."""
        if self.server:
            client_of(self.server).rm_file(f"{self.url.removeprefix('s3://')}/{path}")
        else:
            (Path(self.url) / path).unlink()


def _files_under(folder: str) -> list[Path]:
    """Return all files; what vanishes meanwhile is passed over."""
    return [Path(where) / name for where, _, names in os.walk(folder) for name in names]


def client_of(variables: Mapping[str, str]) -> Any:
    """Return a new client of an S3 server, not one that s3fs remembers."""
    import s3fs

    return s3fs.S3FileSystem(
        key=variables["AWS_ACCESS_KEY_ID"],
        secret=variables["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=variables["AWS_ENDPOINT_URL"],
        config_kwargs={"connect_timeout": 5, "read_timeout": 20},
        skip_instance_cache=True,
        use_listings_cache=False,
    )


def manifests_in(objects: Mapping[str, bytes], *kinds: str) -> dict[str, dict[str, Any]]:
    """Return the manifests among a store's objects by artifact id: those of these kinds, or all."""
    found = {path.split("/")[1]: json.loads(data) for path, data in objects.items() if path.endswith("/manifest.json")}
    return {made: found[made] for made in found if not kinds or found[made]["content"]["kind"] in kinds}


def files_in(objects: Mapping[str, bytes]) -> dict[str, str]:
    """Return the SHA-256 of the files of every artifact by path; each must be there as its manifest records."""
    found = {}
    for made, manifest in manifests_in(objects).items():
        assert manifest["id"] == made
        for entry in manifest["files"]:
            path = f"artifacts/{made}/{entry['path']}"
            found[path] = hashlib.sha256(objects[path]).hexdigest()
            assert (len(objects[path]), found[path]) == (entry["size"], entry["sha256"]), path
    return found


def assert_whole(place: Place, wanted: Mapping[str, str], *, others: bool = False) -> dict[str, bytes]:
    """Check that every artifact is whole, and that its files are those of an undisturbed run; return the objects.

    Args:
        place: the store.
        wanted: the files of the undisturbed run by path, with their SHA-256.
        others: whether there may be other artifacts as well.
    """
    objects = place.objects()
    found = files_in(objects)
    assert wanted.items() <= found.items()
    assert others or found == wanted
    for made, manifest in manifests_in(objects, "delta").items():
        missing = [
            block for block in manifest["content"]["blocks"] if f"artifacts/{block['id']}/manifest.json" not in objects
        ]
        assert not missing, made
    return objects


def unique(prefix: str = "s3://impart") -> str:
    """Return the address of a store that nobody uses."""
    return f"{prefix}/{uuid.uuid4().hex}"
