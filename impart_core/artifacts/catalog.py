"""What a store holds, as a list for people."""

from impart_core.artifacts.manifest import BlockContent, DeltaContent, EvaluationContent, FactorsContent, Manifest
from impart_core.artifacts.refs import all_refs
from impart_core.artifacts.store import Store
from impart_core.config import Frozen
from impart_core.errors import CorruptArtifactError


class CatalogEntry(Frozen):
    """One artifact: its id, kind, names, what it is in a few words, its own bytes, and when it was made."""

    id: str
    kind: str
    names: tuple[str, ...]
    summary: str
    bytes: int
    started: str


def list_entries(store: Store) -> list[CatalogEntry]:
    """Return the deltas and evaluations of a store, newest last; blocks and factors belong to deltas."""
    names: dict[str, list[str]] = {}
    for name, artifact_id in all_refs(store).items():
        names.setdefault(artifact_id, []).append(name)
    entries = []
    for artifact_id in store.ids():
        entry = _entry(store, artifact_id, tuple(names.get(artifact_id, ())))
        if entry:
            entries.append(entry)
    return sorted(entries, key=lambda entry: (entry.started, entry.id))


def _entry(store: Store, artifact_id: str, names: tuple[str, ...]) -> CatalogEntry | None:
    try:
        manifest = store.manifest(artifact_id)
    except CorruptArtifactError:
        return CatalogEntry(id=artifact_id, kind="damaged", names=names, summary="", bytes=0, started="")
    if isinstance(manifest.content, BlockContent | FactorsContent):
        return None
    size = store.artifact_bytes(manifest)
    if isinstance(manifest.content, DeltaContent):
        size += sum(block.bytes for block in manifest.content.blocks)
    return CatalogEntry(
        id=artifact_id,
        kind=manifest.content.kind,
        names=names,
        summary=_summary(manifest),
        bytes=size,
        started=manifest.provenance.started,
    )


def _summary(manifest: Manifest) -> str:
    settings = manifest.recipe.config
    if isinstance(manifest.content, EvaluationContent):
        return f"{settings['task']} ({settings['split']})"
    return f"{settings['method']} at CR {settings['cr']:g}, seed {settings['seed']}"
