"""Verifying what was published: every file re-read, every number in the manifests held against it."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from impart_core.artifacts.factors import FACTORS_FILE, locate_factors
from impart_core.artifacts.manifest import (
    MANIFEST,
    BlockContent,
    DeltaContent,
    FactorsContent,
    FileEntry,
    Manifest,
)
from impart_core.artifacts.store import Store
from impart_core.checkpoint.layout import Role
from impart_core.codec.format import CODES_FILE, BlockFile, decode_delta, decode_stack
from impart_core.config import Frozen
from impart_core.errors import (
    CorruptArtifactError,
    ImpartError,
    StoreDeniedError,
    StoreFullError,
    StoreUnreachableError,
)
from impart_core.numerics import one_thread_per_kernel

Progress = Callable[[int, int], None]
StoreProgress = Callable[[int, int, int, int], None]

_ID = re.compile(r"[0-9a-f]{64}")
_AT_ONCE = 64  # manifests in memory


class VerifyReport(Frozen):
    """What verification found: artifacts and files read, their bytes, and a sentence for each fault."""

    artifact: str
    artifacts: int
    files: int
    bytes: int
    faults: tuple[str, ...]


class StoreReport(Frozen):
    """What the verification of a store found.

    Attributes:
        store: which.
        artifacts: how many it holds.
        files: how many data files their manifests name.
        bytes: of these files.
        leftovers: objects beside them that no manifest names, such as a killed writer leaves; no fault.
        leftover_bytes: of these.
        faults: a sentence for each.
    """

    store: str
    artifacts: int
    files: int
    bytes: int
    leftovers: int
    leftover_bytes: int
    faults: tuple[str, ...]


def verify(store: Store, artifact_id: str, progress: Progress | None = None) -> VerifyReport:
    """Re-read an artifact and, for a delta, its blocks: sizes, digests, headers, and that all codes decode.

    Raises:
        ArtifactNotFoundError: it does not exist. Damage is reported, not raised.
    """
    reading = _Reading(store)
    manifests: list[Manifest] = []
    try:
        manifests.append(store.manifest(artifact_id))
    except CorruptArtifactError as error:
        reading.faults.append(str(error))
    pointers = [pointer for top in manifests if isinstance(top.content, DeltaContent) for pointer in top.content.blocks]
    for pointer in pointers:
        with _collected(reading.faults):
            manifests.append(store.manifest(pointer.id))
    for number, manifest in enumerate(manifests, 1):
        reading.read(manifest)
        if progress:
            progress(number, len(manifests))
    if not reading.faults:
        reading.add_up()
    return VerifyReport(
        artifact=artifact_id,
        artifacts=len(manifests),
        files=reading.files,
        bytes=reading.bytes,
        faults=tuple(reading.faults),
    )


def verify_store(store: Store, progress: StoreProgress | None = None) -> StoreReport:
    """Re-read every artifact of a store, once each, however many deltas share it, and every delta's totals.

    Args:
        store: which.
        progress: called with artifacts done, their number, and both in bytes of what lies under `artifacts`.
    """
    reading = _Reading(store)
    objects = {path: info.size for path, info in store.objects.find("artifacts").items()}
    ids = sorted(path.split("/")[1] for path in objects if _is_manifest(path))
    folders = dict.fromkeys(ids, 0)
    for path, size in objects.items():
        if path.split("/")[1] in folders:
            folders[path.split("/")[1]] += size
    unnamed = {path: size for path, size in objects.items() if not _is_manifest(path)}
    done, read = 0, 0
    for first in range(0, len(ids), _AT_ONCE):
        batch = ids[first : first + _AT_ONCE]
        for artifact_id, manifest in store.manifests(batch):
            if manifest:
                reading.read(manifest)
            else:
                reading.note_damaged(artifact_id)
            for path in _named(artifact_id, manifest, unnamed):
                unnamed.pop(path, None)
            done, read = done + 1, read + folders[artifact_id]
            if progress:
                progress(done, len(ids), read, sum(folders.values()))
    reading.add_up()
    return StoreReport(
        store=store.url,
        artifacts=done,
        files=reading.files,
        bytes=reading.bytes,
        leftovers=len(unnamed),
        leftover_bytes=sum(unnamed.values()),
        faults=tuple(reading.faults),
    )


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
    """Reads artifacts and remembers what the totals of deltas are made of."""

    def __init__(self, store: Store) -> None:
        """Name the store; nothing is read yet."""
        self._store = store
        self._codes: dict[str, int | None] = {}
        self._deltas: list[tuple[str, DeltaContent]] = []
        self.faults: list[str] = []
        self.files = self.bytes = 0

    def read(self, manifest: Manifest) -> None:
        """Read every file of an artifact; each that is at fault adds a sentence."""
        before, content = len(self.faults), manifest.content
        for entry in manifest.files:
            self.files, self.bytes = self.files + 1, self.bytes + entry.size
            with _collected(self.faults):
                self._read_file(manifest, entry)
        needed = {"block": CODES_FILE, "factors": FACTORS_FILE}.get(content.kind)
        if needed:
            with _collected(self.faults):
                manifest.file(needed)
        if isinstance(content, BlockContent):
            self._codes[manifest.id] = content.projection_bytes if len(self.faults) == before else None
        elif isinstance(content, DeltaContent):
            self._deltas.append((manifest.id, content))

    def note_damaged(self, artifact_id: str) -> None:
        """Enter an artifact whose manifest cannot be read."""
        self._codes[artifact_id] = None
        with _collected(self.faults):
            self._store.manifest(artifact_id)

    def _read_file(self, manifest: Manifest, entry: FileEntry) -> None:
        try:
            with self._store.local_file(manifest, entry.name, verified=True) as path:
                if isinstance(manifest.content, BlockContent) and entry.name == CODES_FILE:
                    with one_thread_per_kernel():
                        _verify_block(BlockFile(path), manifest.content)
                if isinstance(manifest.content, FactorsContent) and entry.name == FACTORS_FILE:
                    locate_factors(path, manifest.content)
        except ImpartError:
            raise
        except OSError as error:  # a disk that fails to give it back
            place = f"{self._store.url}/artifacts/{manifest.id}/{entry.path}"
            raise CorruptArtifactError(f"{place} cannot be read: {error.strerror or error}.") from error

    def add_up(self) -> None:
        """Hold the totals of every delta that was read against its blocks, where these are whole."""
        for artifact_id, content in self._deltas:
            for pointer in content.blocks:
                if pointer.id not in self._codes:
                    place = f"{self._store.url}/artifacts/{pointer.id}/{MANIFEST}"
                    lost = f"block {pointer.name} of the delta {artifact_id[:12]} is lost"
                    self.faults.append(f"{place} is missing, or no block's: {lost}.")
            codes = [self._codes.get(pointer.id) for pointer in content.blocks]
            found = [size for size in codes if size is not None]
            if len(found) == len(codes) and sum(found) != content.projection_bytes:
                self.faults.append(
                    f"The delta {artifact_id[:12]} records {content.projection_bytes:,} bytes of projections; "
                    f"its blocks hold {sum(found):,}."
                )


@contextmanager
def _collected(faults: list[str]) -> Iterator[None]:
    """Turn a fault into a sentence in the list; a store that cannot be read at all is none."""
    try:
        yield
    except (StoreUnreachableError, StoreDeniedError, StoreFullError):
        raise
    except ImpartError as error:
        faults.append(str(error))


def _verify_block(file: BlockFile, content: BlockContent) -> None:
    if set(file.headers) != set(content.tensors):
        raise CorruptArtifactError(f"{file.path} does not hold the tensors that its manifest lists.")
    for name, entry in content.tensors.items():
        header = file.headers[name]
        if (header.method, header.shape, header.dtype) != (
            entry.method,
            entry.shape,
            entry.dtype,
        ):
            raise CorruptArtifactError(f"{file.path} stores {name!r} otherwise than its manifest says.")
        if file.code_bytes([name]) != entry.bytes:
            raise CorruptArtifactError(f"{file.path}: the codes of {name!r} are not as long as its manifest says.")
        if header.is_stack:
            for _ in decode_stack(file, name):
                pass
        else:
            decode_delta(name, header, file.codes(name))
    codes = file.code_bytes([name for name, header in file.headers.items() if header.role is Role.PROJECTION])
    if codes != content.projection_bytes:
        raise CorruptArtifactError(
            f"{file.path} holds {codes:,} bytes of projections; its manifest says {content.projection_bytes:,}."
        )
