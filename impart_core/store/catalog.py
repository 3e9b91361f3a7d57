"""What a store holds: one short entry for every artifact, enough to list, to draw lineage and to clean up by.

The truth is in the manifests. Entries are also kept together, in packs that are named by their content, so that a
store of thousands of artifacts is read with few requests:

catalog/<number of entries>-<digest>.json

Every run adds a pack of what it made; many small packs are merged into one. A pack that is lost or damaged costs time:
its artifacts' manifests are read again.
"""

import contextlib
import hashlib
import re
from collections.abc import Callable, Collection, Iterable

from pydantic import Field, TypeAdapter, ValidationError

from impart_core.base.canonical import canonical_json
from impart_core.base.errors import (
    ArtifactNotFoundError,
    ConfigError,
    CorruptArtifactError,
    NewerArtifactError,
    StoreError,
)
from impart_core.base.settings import Frozen
from impart_core.store.manifest import Manifest, Measured, kind_of
from impart_core.store.names import names_by_id
from impart_core.store.store import Store

DAMAGED = "damaged"
_FOLDER = "catalog"
_PACK = re.compile(r"([0-9]{8,18})-([0-9a-f]{64})\.json")
_ID = re.compile(r"[0-9a-f]{64}")
# Packs of fewer entries are merged when there are more than so many of them.
_SMALL_PACK = 1000
_MOST_SMALL_PACKS = 32
_WORTH_A_PACK = 32
_MAX_PACK_BYTES = 256 << 20


class CatalogEntry(Frozen):
    """One artifact in a few words.

    Attributes:
        id: its id.
        kind: the kind that it is registered as, or `damaged` where its manifest cannot be read by this program.
        summary: what it is, for people.
        bytes: its own bytes in the store, and those of the artifacts that it consists of.
        files: number of its data files.
        started: when its making began (UTC, ISO 8601).
        parents: ids of the artifacts that it points to or was made from.
        checkpoints: ids of the checkpoints that it was made from by role.
        metrics: what was measured by task and metric: value and standard error.
    """

    id: str
    kind: str
    summary: str = ""
    bytes: int = 0
    files: int = 0
    started: str = ""
    parents: tuple[str, ...] = ()
    checkpoints: dict[str, str] = Field(default_factory=dict)
    metrics: dict[str, dict[str, Measured]] = Field(default_factory=dict)


_ENTRIES = TypeAdapter(list[CatalogEntry])


class NamedEntry(CatalogEntry):
    """An entry and the names that point to it."""

    names: tuple[str, ...] = ()


def scan(store: Store) -> dict[str, CatalogEntry]:
    """Return the entry of every artifact of a store by its id; manifests are read where no pack has their entry."""
    present = [name for name in store.objects.names("artifacts") if _ID.fullmatch(name)]
    known = _read_packs(store, _pack_names(store))
    found = {artifact_id: known[artifact_id] for artifact_id in present if artifact_id in known}
    unknown = store.manifests(name for name in present if name not in known)
    read = {artifact_id: read_entry(store, artifact_id, manifest) for artifact_id, manifest in unknown}
    whole = [entry for entry in read.values() if entry.kind != DAMAGED]
    if len(whole) >= _WORTH_A_PACK:
        with contextlib.suppress(StoreError):  # whoever may only read can do without
            note(store, whole)
    return dict(sorted({**found, **read}.items()))


def read_entry(store: Store, artifact_id: str, manifest: Manifest | None) -> CatalogEntry:
    """Return the entry of an artifact whose manifest was read, None where it cannot be; it then counts as damaged."""
    try:
        return entry_of(manifest or store.manifest(artifact_id))
    except NewerArtifactError:
        return CatalogEntry(id=artifact_id, kind=DAMAGED, summary="made by a newer impart")
    except (CorruptArtifactError, ArtifactNotFoundError):
        return CatalogEntry(id=artifact_id, kind=DAMAGED)


def note(store: Store, entries: Iterable[CatalogEntry]) -> None:
    """Enter artifacts in the catalogue, once more where they are in it already."""
    _write_pack(store, entries)
    small = [name for name in _pack_names(store) if int(name.partition("-")[0]) < _SMALL_PACK]
    if len(small) > _MOST_SMALL_PACKS:
        _replace_packs(store, small, ())


def forget(store: Store, artifact_ids: Collection[str]) -> None:
    """Take artifacts out of the catalogue, before they are deleted."""
    names = _pack_names(store)
    if names:
        _replace_packs(store, names, artifact_ids)


def _replace_packs(store: Store, names: list[str], without: Collection[str]) -> None:
    kept = {key: entry for key, entry in _read_packs(store, names).items() if key not in without}
    written = _write_pack(store, kept.values())
    store.objects.delete(f"{_FOLDER}/{name}" for name in names if name != written)


def _pack_names(store: Store) -> list[str]:
    return [name for name in store.objects.names(_FOLDER) if _PACK.fullmatch(name)]


def _read_packs(store: Store, names: Iterable[str]) -> dict[str, CatalogEntry]:
    """Read packs; of several entries of one artifact the latest holds. One that is damaged is left out."""
    found: dict[str, CatalogEntry] = {}
    for path, data in store.objects.read_many([f"{_FOLDER}/{name}" for name in names], _MAX_PACK_BYTES).items():
        if not path.endswith(f"-{hashlib.sha256(data).hexdigest()}.json"):
            continue
        try:
            entries = _ENTRIES.validate_json(data)
        except ValidationError:  # of another version
            continue
        for entry in entries:
            if entry.id not in found or found[entry.id].started <= entry.started:
                found[entry.id] = entry
    return found


def _write_pack(store: Store, entries: Iterable[CatalogEntry]) -> str:
    ordered = sorted({entry.id: entry for entry in entries}.values(), key=lambda entry: entry.id)
    data = canonical_json([entry.model_dump(mode="json") for entry in ordered])
    name = f"{len(ordered):08d}-{hashlib.sha256(data).hexdigest()}.json"
    store.objects.create(f"{_FOLDER}/{name}", data)
    return name


def reach(starts: Iterable[str], step: Callable[[str], Iterable[str]]) -> list[str]:
    """Return ids and all that are reached from them by steps, nearest first, each once."""
    found = dict.fromkeys(starts)
    waiting = list(found)
    for node in waiting:
        for following in step(node):
            if following not in found:
                found[following] = None
                waiting.append(following)
    return waiting


def list_entries(store: Store) -> list[NamedEntry]:
    """Return the artifacts that people look for by themselves, with their names, newest last; see `Content.listed`.

    Raises:
        ArtifactNotFoundError: nothing lies at the store's place.
    """
    names = names_by_id(store)
    entries = [
        NamedEntry(**entry.model_dump(), names=names.get(entry.id, ()))
        for entry in scan(store).values()
        if (kind := kind_of(entry.kind)) is None or kind.listed
    ]
    if not entries:
        store.require_there()
    return sorted(entries, key=lambda entry: (entry.started, entry.id))


def entry_of(manifest: Manifest) -> CatalogEntry:
    """Return the entry of an artifact from its manifest.

    Raises:
        CorruptArtifactError: it says of what it was made in another form than any artifact.
    """
    content = manifest.content
    try:
        return CatalogEntry(
            id=manifest.id,
            kind=content.kind,
            summary=content.summary(manifest.recipe),
            bytes=manifest.nbytes + sum(pointer.bytes for pointer in content.pointers()),
            files=len(manifest.files),
            started=manifest.provenance.started,
            parents=manifest.parents,
            checkpoints=content.checkpoints(manifest.recipe),
            metrics=content.measurements(),
        )
    except (ValueError, OverflowError, ConfigError) as error:
        raise CorruptArtifactError(f"The manifest of {manifest.id[:12]} cannot be told in short: {error}") from error
