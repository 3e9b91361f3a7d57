"""Verifying what was published: every file re-read, every number in the manifests held against it."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from impart_core.base.errors import (
    ArtifactNotFoundError,
    CorruptArtifactError,
    ImpartError,
    NewerArtifactError,
    StoreDeniedError,
    StoreFullError,
    StoreUnreachableError,
)
from impart_core.base.settings import Frozen
from impart_core.store.manifest import MANIFEST, Content, FileEntry, Manifest
from impart_core.store.names import all_logs
from impart_core.store.store import Store

Progress = Callable[[int, int], None]
StoreProgress = Callable[[int, int, int, int], None]

_ID = re.compile(r"[0-9a-f]{64}")
_AT_ONCE = 64  # manifests in memory


class VerifyReport(Frozen):
    """What the verification of an artifact, or of a whole store, found.

    Attributes:
        store: which.
        artifact: id of the artifact; empty where all were verified.
        artifacts: how many were read.
        files: how many data files their manifests name.
        bytes: of these files.
        leftovers: objects beside all artifacts that no manifest names, such as a killed writer leaves; no fault.
        leftover_bytes: of these.
        names: how many names were checked; none where one artifact was verified.
        faults: a sentence for each.
    """

    store: str
    artifact: str = ""
    artifacts: int
    files: int
    bytes: int
    leftovers: int = 0
    leftover_bytes: int = 0
    names: int = 0
    faults: tuple[str, ...]


def verify(store: Store, artifact_id: str, progress: Progress | None = None) -> VerifyReport:
    """Re-read an artifact and those that it consists of: sizes, digests, headers, and what their kinds check.

    Raises:
        ArtifactNotFoundError: it does not exist. Damage is reported, not raised.
    """
    reading = _Reading(store)
    manifests: list[Manifest] = []
    try:
        manifests.append(store.manifest(artifact_id))
    except CorruptArtifactError as error:
        reading.faults.append(str(error))
    pointers = [pointer for top in manifests for pointer in top.content.pointers()]
    for pointer in pointers:
        with _collected(reading.faults):
            manifests.append(store.part(pointer.id, artifact_id))
    for number, manifest in enumerate(manifests, 1):
        reading.read(manifest)
        if progress:
            progress(number, len(manifests))
    if not reading.faults:
        reading.add_up()
    return reading.report(artifact=artifact_id, artifacts=len(manifests))


def verify_store(store: Store, progress: StoreProgress | None = None) -> VerifyReport:
    """Re-read every artifact of a store, once each, however many deltas share it, every delta's totals, every name.

    Of a name every move must be as it was written, and the artifact that it points to whole, with all its parts.

    Args:
        store: which.
        progress: called with artifacts done, their number, and both in bytes of what lies under `artifacts`.

    Raises:
        ArtifactNotFoundError: nothing lies at the store's place.
    """
    reading = _Reading(store)
    objects = {path: info.size for path, info in store.objects.find("artifacts").items()}
    if not objects:
        store.require_there()
    ids = sorted(path.split("/")[1] for path in objects if _is_manifest(path))
    folders = dict.fromkeys(ids, 0)
    for path, size in objects.items():
        if path.split("/")[1] in folders:
            folders[path.split("/")[1]] += size
    unnamed = {path: size for path, size in objects.items() if not _is_manifest(path)}
    done, read = 0, 0
    for first in range(0, len(ids), _AT_ONCE):
        batch = ids[first : first + _AT_ONCE]
        given = set()
        for artifact_id, manifest in store.manifests(batch):
            given.add(artifact_id)
            if manifest:
                reading.read(manifest)
            else:
                reading.note_damaged(artifact_id)
            for path in _named(artifact_id, manifest, unnamed):
                unnamed.pop(path, None)
            done, read = done + 1, read + folders[artifact_id]
            if progress:
                progress(done, len(ids), read, sum(folders.values()))
        for artifact_id in set(batch) - given:
            reading.note_damaged(artifact_id)
    reading.add_up()
    names = reading.check_names()
    return reading.report(artifacts=done, names=names, leftovers=len(unnamed), leftover_bytes=sum(unnamed.values()))


def _is_manifest(path: str) -> bool:
    parts = path.split("/")
    return len(parts) == 3 and parts[2] == MANIFEST and _ID.fullmatch(parts[1]) is not None


def _named(artifact_id: str, manifest: Manifest | None, unnamed: Iterable[str]) -> list[str]:
    """Return the paths that a manifest names; all of its folder where it cannot be read."""
    folder = f"artifacts/{artifact_id}/"
    if manifest is None:
        return [path for path in unnamed if path.startswith(folder)]
    return [f"{folder}{entry.path}" for entry in manifest.files]


class _Reading:
    """Reads artifacts and remembers what the totals of others are made of."""

    def __init__(self, store: Store) -> None:
        """Name the store; nothing is read yet."""
        self._store = store
        self._whole: dict[str, Content | None] = {}  # by id; None where something of it is at fault
        self._composed: list[tuple[str, Content]] = []
        self.faults: list[str] = []
        self.files = self.bytes = 0

    def read(self, manifest: Manifest) -> None:
        """Read every file of an artifact; each that is at fault adds a sentence."""
        before, content = len(self.faults), manifest.content
        for entry in manifest.files:
            self.files, self.bytes = self.files + 1, self.bytes + entry.size
            with _collected(self.faults):
                self._read_file(manifest, entry)
        for needed in content.files:
            with _collected(self.faults):
                manifest.file(needed)
        self._whole[manifest.id] = content if len(self.faults) == before else None
        if content.pointers():
            self._composed.append((manifest.id, content))

    def note_damaged(self, artifact_id: str) -> None:
        """Enter an artifact whose manifest cannot be read; one that was deleted meanwhile is none."""
        with _collected(self.faults), suppress(ArtifactNotFoundError):
            try:
                self._store.manifest(artifact_id)
            except (CorruptArtifactError, NewerArtifactError):
                self._whole[artifact_id] = None
                raise

    def _read_file(self, manifest: Manifest, entry: FileEntry) -> None:
        try:
            with self._store.local_file(manifest, entry.name, verified=True) as path:
                manifest.content.check(entry.name, path)
        except ImpartError:
            raise
        except OSError as error:  # a disk that fails to give it back
            place = self._store.place_of(manifest.id, entry.path)
            raise CorruptArtifactError(f"{place} cannot be read: {error.strerror or error}.") from error

    def add_up(self) -> None:
        """Hold the totals of every artifact that consists of others against these, where they are whole."""
        for artifact_id, content in self._composed:
            for pointer in content.pointers():
                if pointer.id not in self._whole:
                    place = self._store.place_of(pointer.id, MANIFEST)
                    lost = f"{pointer.name} of the {content.kind} {artifact_id[:12]} is lost"
                    self.faults.append(f"{place} is missing, or of another kind: {lost}.")
            parts = [self._whole.get(pointer.id) for pointer in content.pointers()]
            whole = [part for part in parts if part]
            if len(whole) == len(parts) and (wrong := content.mismatch(whole)):
                self.faults.append(f"The {content.kind} {artifact_id[:12]} {wrong}.")

    def check_names(self) -> int:
        """Hold every name against what was read of the whole store; return how many there are."""
        logs = all_logs(self._store)
        for name, log in logs.items():
            if log.damaged:
                self.faults.append(f"The name {name!r} is damaged: {log.trouble()}")
            elif lost := self._lost(log.moves[-1].id):
                self.faults.append(
                    f"The name {name!r} points to {log.moves[-1].id[:12]}, of which {lost}. Compress with the same "
                    f"settings again to make it anew, or `impart tag REF {name}` or `impart untag {name}`."
                )
        return len(logs)

    def _lost(self, artifact_id: str) -> str | None:
        """Return what an artifact that a name points to lacks, if anything; damaged files have been told of."""
        if artifact_id not in self._whole:
            try:
                self.read(self._store.manifest(artifact_id))  # it was published since
            except (ArtifactNotFoundError, CorruptArtifactError):
                return "there is nothing in the store"
        content = self._whole[artifact_id]
        lost = [part.name for part in (content.pointers() if content else ()) if part.id not in self._whole]
        return f"{', '.join(lost[:3])} is lost" if lost else None

    def report(self, **what: Any) -> VerifyReport:
        """Return what was read and found, with what else there is to say of it."""
        faults = tuple(self.faults)
        return VerifyReport(store=self._store.url, files=self.files, bytes=self.bytes, faults=faults, **what)


@contextmanager
def _collected(faults: list[str]) -> Iterator[None]:
    """Turn a fault into a sentence in the list; a store that cannot be read at all is none."""
    try:
        yield
    except (StoreUnreachableError, StoreDeniedError, StoreFullError):
        raise
    except ImpartError as error:
        faults.append(str(error))
