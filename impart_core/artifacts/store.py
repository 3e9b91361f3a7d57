"""The artifact store: one fsspec URL, artifacts as prefixes, the manifest written last (DESIGN.md §3).

artifacts/<id>/<stem>.<digest><suffix>   data files, named by content: writers never overwrite each other
artifacts/<id>/manifest.json             makes the artifact exist
refs/<name>/<number>.json                see refs.py
"""

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import fsspec
import platformdirs
from fsspec.implementations.local import LocalFileSystem

from impart_core.artifacts.manifest import MANIFEST, FileEntry, Manifest, parse_manifest
from impart_core.busy import busy
from impart_core.errors import ArtifactNotFoundError, CorruptArtifactError, StoreError
from impart_core.files import disk_errors, write_atomically
from impart_core.storage import storage_options

_CHUNK = 1 << 20
_MAX_MANIFEST_BYTES = 64 << 20


def default_store_url() -> str:
    """Return IMPART_STORE, else a folder in the user's data directory."""
    return os.environ.get("IMPART_STORE") or str(Path(platformdirs.user_data_dir("impart")) / "store")


class Store:
    """An artifact store at an fsspec URL. Nothing published is ever changed."""

    def __init__(self, url: str | Path | None = None) -> None:
        """Name a store; nothing is read or made yet.

        Raises:
            StoreError: the URL's protocol is not known or not installed.
            ConfigError: IMPART_STORE_OPTIONS is malformed.
        """
        self.url = str(url) if url else default_store_url()
        try:
            self._fs, root = fsspec.core.url_to_fs(self.url, **storage_options())
        except (ValueError, ImportError) as error:
            raise StoreError(
                f"The store {self.url!r} cannot be opened: {error}. Give a folder or an fsspec URL such as s3://…"
            ) from error
        self._root = str(root).rstrip("/")

    @property
    def is_local(self) -> bool:
        """Whether the store is a folder of this machine."""
        return isinstance(self._fs, LocalFileSystem)

    def require_writable(self) -> None:
        """Try the store with a probe object.

        Raises:
            StoreError: it cannot be written.
        """
        probe = f"{self._root}/.probe-{uuid.uuid4().hex}"
        try:
            with disk_errors(f"the store {self.url}"):
                self._write(probe, b"impart")
                self._fs.rm_file(probe)
        except (OSError, NotImplementedError) as error:
            raise StoreError(
                f"The store {self.url} cannot be reached, or takes no writes: {error or type(error).__name__}. "
                "Check its address, or choose another place."
            ) from error

    def publish(self, manifest: Manifest, files: Mapping[str, Path], *, reread: bool = False) -> Manifest:
        """Publish an artifact: its data files, then its manifest.

        Args:
            manifest: made with `file_entry` for each file.
            files: local paths of the data files by name.
            reread: trust what is there only if its files have the recorded digests, too; else it is replaced.

        Returns:
            The manifest that is in force: another writer's, if a whole artifact was there first.
        """
        present = self.lookup(manifest.id, reread=reread)
        if present is not None:
            return present
        with disk_errors(f"the store {self.url}"), busy():
            for entry in manifest.files:
                self._put(files[entry.name], self._path(manifest.id, entry.path))
            if not self.create(f"artifacts/{manifest.id}/{MANIFEST}", manifest.to_json()):
                # Another writer was first, or the artifact is damaged and this is its repair.
                present = self.lookup(manifest.id, reread=reread)
                if present is not None:
                    return present
                self._write(self._path(manifest.id, MANIFEST), manifest.to_json())
        return manifest

    def lookup(self, artifact_id: str, *, reread: bool = False) -> Manifest | None:
        """Return the manifest of a whole artifact: it exists and its files have the recorded sizes; else None.

        Args:
            artifact_id: which.
            reread: whether the files are read, to hold them against the recorded digests as well.
        """
        try:
            manifest = self.manifest(artifact_id)
            for file in manifest.files:
                if self._size(artifact_id, file) != file.size:
                    return None
                if reread:
                    self.verify_file(manifest, file)
        except (ArtifactNotFoundError, CorruptArtifactError):
            return None
        return manifest

    def manifest(self, artifact_id: str) -> Manifest:
        """Read an artifact's manifest.

        Raises:
            ArtifactNotFoundError: there is none.
            CorruptArtifactError: it is not a valid manifest, or is another artifact's.
        """
        path = self._path(artifact_id, MANIFEST)
        data = self._read(path)
        if data is None:
            raise ArtifactNotFoundError(f"There is no artifact {artifact_id[:12]} in the store {self.url}.")
        manifest = parse_manifest(data, path)
        if manifest.id != artifact_id:
            raise CorruptArtifactError(f"{path} is the manifest of another artifact, {manifest.id[:12]}.")
        return manifest

    def manifest_bytes(self, artifact_id: str) -> int:
        """Return the size of an artifact's manifest on disk."""
        return int(self._fs.size(self._path(artifact_id, MANIFEST)))

    def artifact_bytes(self, manifest: Manifest) -> int:
        """Return every byte of one artifact as it lies in the store: its files and its manifest."""
        return sum(entry.size for entry in manifest.files) + self.manifest_bytes(manifest.id)

    @contextmanager
    def local_file(self, manifest: Manifest, name: str, *, verified: bool = False) -> Iterator[Path]:
        """Give a data file as a local path, downloading it to scratch when the store is remote.

        Args:
            manifest: the artifact's.
            name: which file.
            verified: whether it is read first, to hold it against the recorded digest.

        Raises:
            CorruptArtifactError: naming the file, when it is missing or its size, or digest, is not the recorded one.
        """
        entry = manifest.file(name)
        path = self._path(manifest.id, entry.path)
        found = self._size(manifest.id, entry)
        if found != entry.size:
            raise CorruptArtifactError(_wrong(path, f"has {found} bytes, its manifest says {entry.size}"))
        with ExitStack() as stack:
            local = Path(path)
            if not self.is_local:
                local = Path(stack.enter_context(TemporaryDirectory(prefix="impart-"))) / entry.name
                self._fs.get_file(path, str(local))
            with busy():
                wrong = verified and sha256_of(local) != entry.sha256
            if wrong:
                raise CorruptArtifactError(_wrong(path, "does not have the SHA-256 that its manifest records"))
            yield local

    def verify_file(self, manifest: Manifest, entry: FileEntry) -> None:
        """Re-read a data file; errors as in `local_file`."""
        with self.local_file(manifest, entry.name, verified=True):
            pass

    def ids(self) -> list[str]:
        """Return the ids of all artifacts, sorted."""
        return sorted(name for name in self.names_under("artifacts") if self._fs.exists(self._path(name, MANIFEST)))

    def names_under(self, prefix: str) -> list[str]:
        """Return the names directly under a prefix, sorted; an absent prefix has none."""
        try:
            found = self._fs.ls(f"{self._root}/{prefix}", detail=False)
        except FileNotFoundError:
            return []
        except NotADirectoryError as error:
            raise StoreError(f"The store {self.url} is a file, or lies below one. Give a folder.") from error
        return sorted(str(path).rstrip("/").rsplit("/", 1)[-1] for path in found)

    def read(self, path: str) -> bytes | None:
        """Return a small object's bytes by its path under the store, or None where there is none."""
        return self._read(f"{self._root}/{path}")

    def create(self, path: str, data: bytes) -> bool:
        """Write a small object if and only if its name is free; return whether it was."""
        target = f"{self._root}/{path}"
        with disk_errors(f"the store {self.url}"):
            try:
                if self.is_local:
                    Path(target).parent.mkdir(parents=True, exist_ok=True)
                    write_atomically(Path(target), data, place=os.link)
                else:
                    self._fs.pipe_file(target, data, mode="create")
            except FileExistsError:
                return False
        return True

    def _path(self, artifact_id: str, name: str) -> str:
        return f"{self._root}/artifacts/{artifact_id}/{name}"

    def _size(self, artifact_id: str, entry: FileEntry) -> int | None:
        try:
            return int(self._fs.size(self._path(artifact_id, entry.path)))
        except FileNotFoundError:
            return None

    def _read(self, path: str) -> bytes | None:
        try:
            if int(self._fs.size(path)) > _MAX_MANIFEST_BYTES:
                raise CorruptArtifactError(_wrong(path, "is far larger than any manifest"))
            return bytes(self._fs.cat_file(path))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _write(self, path: str, data: bytes) -> None:
        if self.is_local:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(Path(path), data)
        else:
            self._fs.pipe_file(path, data)

    def _put(self, source: Path, target: str) -> None:
        if not self.is_local:
            self._fs.put_file(str(source), target)
            return
        place = Path(target)
        place.parent.mkdir(parents=True, exist_ok=True)
        scratch = place.with_name(f".{place.name}.{uuid.uuid4().hex}.tmp")
        try:
            with source.open("rb") as reading, scratch.open("wb") as writing:
                shutil.copyfileobj(reading, writing, _CHUNK)
                writing.flush()
                os.fsync(writing.fileno())
            scratch.replace(place)
        finally:
            scratch.unlink(missing_ok=True)


def file_entry(name: str, path: Path) -> FileEntry:
    """Return the manifest entry of a local file that is about to be published."""
    digest = sha256_of(path)
    stem, dot, suffix = name.rpartition(".")
    stored = f"{stem}.{digest[:16]}.{suffix}" if dot and stem else f"{name}.{digest[:16]}"
    return FileEntry(name=name, path=stored, size=path.stat().st_size, sha256=digest)


def sha256_of(path: Path) -> str:
    """Return a local file's SHA-256 (hex)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _wrong(path: str, why: str) -> str:
    return f"{path} {why}. Compress with the same settings again to make it anew."
