"""What a store holds: one short entry for every artifact, enough to list, to draw lineage and to clean up by."""

from pydantic import Field

from impart_core.artifacts.manifest import BlockContent, DeltaContent, EvaluationContent, FactorsContent, Manifest
from impart_core.artifacts.refs import all_refs
from impart_core.artifacts.store import Store
from impart_core.config import Frozen
from impart_core.errors import ArtifactNotFoundError, CorruptArtifactError

DAMAGED = "damaged"
_PARTS = ("block", "factors")  # kinds that belong to deltas


class CatalogEntry(Frozen):
    """One artifact in a few words.

    Attributes:
        id: its id.
        kind: `block`, `factors`, `delta`, `evaluation`, or `damaged` where its manifest cannot be read.
        summary: what it is, for people: settings, task, or the block's name.
        bytes: its own bytes in the store, of a delta those of its blocks as well.
        started: when its making began (UTC, ISO 8601).
        parents: ids of the artifacts that it points to or was made from.
        checkpoints: ids of the checkpoints that it was made from by role: `base` and `finetuned` of a delta,
            `checkpoint` of an evaluation that measured one.
        metrics: of an evaluation, each task's metrics: value and standard error.
    """

    id: str
    kind: str
    summary: str = ""
    bytes: int = 0
    started: str = ""
    parents: tuple[str, ...] = ()
    checkpoints: dict[str, str] = Field(default_factory=dict)
    metrics: dict[str, dict[str, tuple[float, float | None]]] = Field(default_factory=dict)


class NamedEntry(CatalogEntry):
    """An entry and the names that point to it."""

    names: tuple[str, ...] = ()


def scan(store: Store) -> dict[str, CatalogEntry]:
    """Return the entry of every artifact of a store by its id."""
    found = {}
    for artifact_id in store.ids():
        try:
            found[artifact_id] = entry_of(store.manifest(artifact_id))
        except CorruptArtifactError:
            found[artifact_id] = CatalogEntry(id=artifact_id, kind=DAMAGED)
        except ArtifactNotFoundError:  # it went meanwhile
            continue
    return found


def list_entries(store: Store) -> list[NamedEntry]:
    """Return the deltas and evaluations of a store with their names, newest last; blocks and factors are left out."""
    names: dict[str, list[str]] = {}
    for name, artifact_id in all_refs(store).items():
        names.setdefault(artifact_id, []).append(name)
    entries = [
        NamedEntry(**entry.model_dump(), names=tuple(names.get(entry.id, ())))
        for entry in scan(store).values()
        if entry.kind not in _PARTS
    ]
    return sorted(entries, key=lambda entry: (entry.started, entry.id))


def entry_of(manifest: Manifest) -> CatalogEntry:
    """Return the entry of an artifact from its manifest.

    Raises:
        CorruptArtifactError: it says of what it was made in another form than any artifact.
    """
    try:
        return _entry_of(manifest)
    except (ValueError, OverflowError) as error:
        raise CorruptArtifactError(f"The manifest of {manifest.id[:12]} cannot be told in short: {error}") from error


def _entry_of(manifest: Manifest) -> CatalogEntry:
    content = manifest.content
    size = len(manifest.to_json()) + sum(file.size for file in manifest.files)
    checkpoints: dict[str, str] = {}
    if isinstance(content, DeltaContent):
        size += sum(block.bytes for block in content.blocks)
        checkpoints = {"base": content.base, "finetuned": content.finetuned}
    elif isinstance(content, EvaluationContent) and "checkpoint" in manifest.recipe.inputs:
        checkpoints = {"checkpoint": manifest.recipe.inputs["checkpoint"]}
    return CatalogEntry(
        id=manifest.id,
        kind=content.kind,
        summary=_summary(manifest),
        bytes=size,
        started=manifest.provenance.started,
        parents=manifest.parents,
        checkpoints=checkpoints,
        metrics=content.metrics if isinstance(content, EvaluationContent) else {},
    )


def _summary(manifest: Manifest) -> str:
    content, settings = manifest.content, manifest.recipe.config
    if isinstance(content, BlockContent | FactorsContent):
        return content.name
    if isinstance(content, EvaluationContent):
        return f"{', '.join(content.metrics)} ({settings.get('split', 'all')})"
    cr = settings.get("cr")
    at = f" at CR {cr:g}" if isinstance(cr, float | int) else ""
    return f"{settings.get('method', 'delta')}{at}, seed {settings.get('seed', 0)}"
