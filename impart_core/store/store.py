"""The artifact store: one fsspec URL, artifacts as prefixes, the manifest written last (docs/store.md).

artifacts/<id>/<stem>.<digest><suffix>   data files, named by content: writers never overwrite each other
artifacts/<id>/manifest.json             makes the artifact exist
refs/<name>/<number>.json                see refs.py

No lock is ever taken: of several that make the same artifact at once, the first to create its manifest publishes it,
and the others return that one. Nothing is left behind by one that is killed but objects that no manifest names.
"""

import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from fsspec.implementations.local import LocalFileSystem

from impart_core.base.arguments import require_kind
from impart_core.base.errors import (
    ArtifactNotFoundError,
    CorruptArtifactError,
    ImpartError,
    NewerArtifactError,
    StoreError,
)
from impart_core.base.files import scratch_folder, sha256_of
from impart_core.storage.failures import Side, explain
from impart_core.storage.folder import FolderObjects
from impart_core.storage.objects import PROBES, Objects
from impart_core.storage.open import open_url, require_plain_url
from impart_core.storage.s3 import RemoteObjects, S3Objects
from impart_core.store.kept import take
from impart_core.store.manifest import MANIFEST, Content, FileEntry, Manifest, parse_manifest
from impart_core.store.who import recorded_who

# An id is that of a recipe: whoever made it elsewhere may have published anything under it.
IMPORTED = "What was imported is not reused unless it is trusted (imported=True, on the command line --trust-imported)"
_MAX_MANIFEST_BYTES = 16 << 20
_ID = re.compile(r"[0-9a-f]{64}")


def default_store_url() -> str:
    """Return IMPART_STORE, else a folder in the user's data directory."""
    return os.environ.get("IMPART_STORE") or str(Path(platformdirs.user_data_dir("impart")) / "store")


def absolute_store(url: str) -> str:
    """Return a store's folder as a whole path, so that it means the same wherever it is opened; a URL as it is."""
    return url if "://" in url else str(Path(url).expanduser().absolute())


@dataclass(frozen=True)
class Found:
    """What a look for an artifact found: its manifest where it is whole, else what is wrong with it, if it is there."""

    manifest: Manifest | None = None
    fault: str | None = None


class Store:
    """An artifact store at an fsspec URL. Nothing published is ever changed, but to repair or refresh it."""

    def __init__(self, url: str | Path | None = None) -> None:
        """Name a store; nothing is read or made yet.

        Raises:
            StoreError: the URL's protocol is not known or not installed, or it carries more than a place.
            ConfigError: it is neither text nor a path; or IMPART_STORE_OPTIONS is malformed.
        """
        require_kind(url, (str, Path, type(None)), "The store", "a folder or a URL")
        self.url = str(url) if url else default_store_url()
        self.objects = _open_objects(self.url)

    def require_writable(self) -> None:
        """Try the store with a probe object: that it can be written, and refuses to create what is there.

        Raises:
            ConfigError: it is not to be known who is to be recorded as the writer.
            StoreError: it cannot be written, or two writers could overwrite each other's names.
        """
        recorded_who()
        probe = f"{PROBES}/{uuid.uuid4().hex}"
        self.objects.create(probe, b"first")
        twice = self.objects.create(probe, b"second")
        self.objects.delete([probe])
        if twice:
            raise StoreError(
                f"The store {self.url} overwrites objects that it was asked to create only (If-None-Match), so that "
                "people who share it could lose each other's names. Use a server that honours conditional writes."
            )

    def require_there(self) -> None:
        """Refuse a place where nothing lies: for what reads and found nothing, as the place may be mistyped.

        Raises:
            ArtifactNotFoundError: nothing lies there.
        """
        if not self.objects.exists():
            what = "there is no such folder" if self.objects.is_local else "nothing lies under this prefix"
            raise ArtifactNotFoundError(
                f"There is no store at {self.url}: {what}. Check --store and IMPART_STORE; `impart compress` makes a "
                "store where there is none."
            )

    def publish(
        self, manifest: Manifest, files: Mapping[str, Path], *, reread: bool = False, replace: bool = False
    ) -> Manifest:
        """Publish an artifact: its data files, then its manifest.

        Args:
            manifest: made with `file_entry` for each file.
            files: local paths of the data files by name.
            reread: trust what is there only if its files have the recorded digests, too; else it is replaced.
            replace: put this in the place of what is there, if its files or its content differ.

        Returns:
            The manifest that is in force: another writer's, if a whole artifact was there first that was made here.
        """
        theirs = manifest.provenance.imported  # an import gives way to what is made here
        present = None if replace else self.lookup(manifest.id, reread=reread, imported=theirs)
        if present is not None:
            return present
        for entry in manifest.files:
            self.objects.put(self._path(manifest.id, entry.path), files[entry.name], entry.sha256)
        while not self.objects.create(self._path(manifest.id, MANIFEST), manifest.to_json()):
            # Another writer was first, or the artifact is damaged, and this its repair, or it is to be replaced.
            was = self.objects.read(self._path(manifest.id, MANIFEST), _MAX_MANIFEST_BYTES)
            if was is None:
                self.objects.size(self._path(manifest.id, MANIFEST))  # raises where no file can ever be written
            present = self.lookup(manifest.id, reread=reread, imported=theirs)
            same = present is not None and (present.files, present.content) == (manifest.files, manifest.content)
            if present is not None and (same or not replace):
                return present
            if was is not None and self.objects.replace(self._path(manifest.id, MANIFEST), manifest.to_json(), was):
                break
        return manifest

    def examine(
        self,
        artifact_id: str,
        *,
        reread: bool = False,
        imported: bool = True,
        kind: type[Content] = Content,
        known: Manifest | None = None,
    ) -> Found:
        """Look for a whole artifact: its manifest exists and its files have the recorded sizes.

        Args:
            artifact_id: which.
            reread: whether the files are read, to hold them against the recorded digests as well.
            imported: whether one that was imported counts.
            kind: what it is to be; one of another kind counts as none.
            known: its manifest, where that was read a moment ago.
        """
        try:
            manifest = known or self.manifest(artifact_id)
            if manifest.provenance.imported and not imported:
                return Found(fault=IMPORTED)
            for file in manifest.files:
                if reread:
                    self.verify_file(manifest, file)
                else:
                    path = self._path(artifact_id, file.path)
                    self._require_size(path, file, self.objects.size(path))
        except ArtifactNotFoundError:
            return Found()
        except CorruptArtifactError as error:
            return Found(fault=str(error))
        return Found(manifest if isinstance(manifest.content, kind) else None)

    def lookup(self, artifact_id: str, *, reread: bool = False, imported: bool = True) -> Manifest | None:
        """Return the manifest of a whole artifact, else None; see `examine`."""
        return self.examine(artifact_id, reread=reread, imported=imported).manifest

    def manifest(self, artifact_id: str) -> Manifest:
        """Read an artifact's manifest.

        Raises:
            ArtifactNotFoundError: there is none.
            CorruptArtifactError: it is not a valid manifest, or is another artifact's.
            NewerArtifactError: a newer impart made it.
        """
        if not _ID.fullmatch(artifact_id):
            raise ArtifactNotFoundError(
                f"{artifact_id!r:.100} is no artifact id, which has 64 hexadecimal digits. A name is resolved first: "
                "see `store.names.resolve` and `open_delta`."
            )
        data = self.read(self._path(artifact_id, MANIFEST))
        if data is None and self.objects.is_local:
            self.objects.size(self._path(artifact_id, MANIFEST))  # what is there and no file is said to be damaged
        if data is None:
            raise ArtifactNotFoundError(f"There is no artifact {artifact_id[:12]} in the store {self.url}.")
        return self._parse(artifact_id, data)

    def part(self, artifact_id: str, whole: str) -> Manifest:
        """Read the manifest of an artifact that another one consists of, by both ids; errors as for `manifest`."""
        try:
            return self.manifest(artifact_id)
        except ArtifactNotFoundError as error:
            raise ArtifactNotFoundError(
                f"{whole[:12]} lacks a part: {str(error).removesuffix('.')}. Make it again with the same settings."
            ) from error

    def manifests(self, artifact_ids: Iterable[str]) -> Iterator[tuple[str, Manifest | None]]:
        """Read many manifests; those that do not exist are left out, None stands for one that cannot be read."""
        paths = {self._path(artifact_id, MANIFEST): artifact_id for artifact_id in artifact_ids}
        for path, data in self.objects.read_many(paths, _MAX_MANIFEST_BYTES + 1).items():
            try:
                yield paths[path], self._parse(paths[path], data)
            except (CorruptArtifactError, NewerArtifactError):
                yield paths[path], None

    @contextmanager
    def local_file(self, manifest: Manifest, name: str, *, verified: bool = False) -> Iterator[Path]:
        """Give a data file as a local path, downloading it to scratch when the store is remote.

        Args:
            manifest: the artifact's.
            name: which file.
            verified: whether it is held against the recorded digest; one that is downloaded always is.

        Raises:
            CorruptArtifactError: naming the file, when it is missing or its size, or digest, is not the recorded one.
        """
        entry = manifest.file(name)
        path = self._path(manifest.id, entry.path)
        local = self.objects.local(path)
        if local is not None:
            self._require_size(path, entry, self.objects.size(path))
            if verified:
                self._require_digest(path, entry, sha256_of(local))
            yield local
            return
        at_hand = take(self.url, entry.sha256)
        if at_hand is not None:
            try:
                if sha256_of(at_hand) == entry.sha256:
                    yield at_hand
                    return
            finally:
                at_hand.unlink(missing_ok=True)
        with scratch_folder() as scratch:
            local = scratch / entry.name
            digest = self.objects.fetch(path, local)
            self._require_size(path, entry, local.stat().st_size if digest else None)
            self._require_digest(path, entry, digest)
            yield local

    def verify_file(self, manifest: Manifest, entry: FileEntry) -> None:
        """Re-read a data file; errors as in `local_file`."""
        with self.local_file(manifest, entry.name, verified=True):
            pass

    def ids(self) -> list[str]:
        """Return the ids of all artifacts, sorted."""
        tail = f"/{MANIFEST}"
        return sorted(path.split("/")[1] for path in self.objects.find("artifacts") if path.endswith(tail))

    def ids_from(self, beginning: str) -> list[str]:
        """Return the ids of the artifacts whose id begins so, sorted."""
        fitting = [name for name in self.objects.names("artifacts") if name.startswith(beginning)]
        return [name for name in fitting if self.objects.size(self._path(name, MANIFEST)) is not None]

    def read(self, path: str) -> bytes | None:
        """Return a small object's bytes by its path under the store, or None where there is none.

        Raises:
            CorruptArtifactError: it is far larger than anything small that is ever written.
        """
        data = self.objects.read(path, _MAX_MANIFEST_BYTES + 1)
        if data is not None and len(data) > _MAX_MANIFEST_BYTES:
            raise CorruptArtifactError(self._wrong(path, "is far larger than any manifest"))
        return data

    def _parse(self, artifact_id: str, data: bytes) -> Manifest:
        path = self.place_of(artifact_id, MANIFEST)
        manifest = parse_manifest(data, path)
        if manifest.id != artifact_id:
            raise CorruptArtifactError(f"{path} is the manifest of another artifact, {manifest.id[:12]}.")
        return manifest

    def place_of(self, artifact_id: str, path: str) -> str:
        """Return where an object of an artifact lies, for messages."""
        return f"{self.url.rstrip('/')}/{self._path(artifact_id, path)}"

    def _require_size(self, path: str, entry: FileEntry, size: int | None) -> None:
        if size is None:
            raise CorruptArtifactError(self._wrong(path, "is missing"))
        if size != entry.size:
            raise CorruptArtifactError(self._wrong(path, f"has {size} bytes, its manifest says {entry.size}"))

    def _require_digest(self, path: str, entry: FileEntry, digest: str | None) -> None:
        if digest != entry.sha256:
            raise CorruptArtifactError(self._wrong(path, "does not have the SHA-256 that its manifest records"))

    def _path(self, artifact_id: str, name: str) -> str:
        return f"artifacts/{artifact_id}/{name}"

    def _wrong(self, path: str, why: str) -> str:
        place = f"{self.url.rstrip('/')}/{path}"
        return (
            f"{place} {why}. Compress with the same settings and read what is reused (reread=True, on the command "
            "line --verify-cache) to make it anew."
        )


def _open_objects(url: str) -> Objects:
    try:
        if "://" in url:
            require_plain_url(url, "store", StoreError)
        fs, root = open_url(url)
    except (ValueError, ImportError, TypeError) as error:
        raise StoreError(
            f"The store {url!r} cannot be opened: {error}. Give a folder or an fsspec URL such as s3://…"
        ) from error
    except ImpartError:
        raise
    except Exception as error:  # some file systems connect, or read an archive, when they are opened
        raise explain(error, Side.STORE, url) from error
    if isinstance(fs, LocalFileSystem):
        return FolderObjects(url, root)
    return (S3Objects if hasattr(fs, "call_s3") else RemoteObjects)(url, fs, root)


def file_entry(name: str, path: Path) -> FileEntry:
    """Return the manifest entry of a local file that is about to be published."""
    digest = sha256_of(path)
    stem, dot, suffix = name.rpartition(".")
    stored = f"{stem}.{digest[:16]}.{suffix}" if dot and stem else f"{name}.{digest[:16]}"
    return FileEntry(name=name, path=stored, size=path.stat().st_size, sha256=digest)
