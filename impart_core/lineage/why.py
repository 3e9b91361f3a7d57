"""Why an artifact is what it is: its inputs, settings, code and surroundings, from its manifest alone."""

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from impart_core.artifacts.evaluation import EvaluationContent
from impart_core.base.errors import ArtifactNotFoundError, CorruptArtifactError
from impart_core.base.settings import Frozen
from impart_core.base.text import without_secrets
from impart_core.store.catalog import entry_of
from impart_core.store.manifest import Manifest, Measured
from impart_core.store.names import names_by_id
from impart_core.store.provenance import Provenance
from impart_core.store.store import Store


class Input(Frozen):
    """One input of an operation.

    Attributes:
        role: what it was to the operation (`base`, `finetuned`, `checkpoint`, `delta`, `factors`).
        id: its checkpoint or artifact id; empty where its tensors count one by one, as a block's do, or where
            it is no part of the artifact's id.
        location: where it lay, if that is recorded.
        tensors: how many of its tensors were read; none where that is not recorded.
        files: how many of its other files (configuration, tokenizer) were read.
    """

    role: str
    id: str = ""
    location: str = ""
    tensors: int | None = None
    files: int | None = None


class Account(Frozen):
    """All that is known of how an artifact came to be.

    Attributes:
        artifact: its id.
        kind: what it is.
        summary: the same for people.
        names: the names that point to it.
        operation: what made it.
        operation_version: its version.
        inputs: what that read.
        parents: ids of the artifacts that it points to or was made from.
        config: the settings by dotted key.
        seeds: those among them that are seeds.
        metrics: of an evaluation, value and standard error by task and metric.
        items: of an evaluation, the number of items by task.
        provenance: code, environment, who, when, how long, peak memory.
    """

    artifact: str
    kind: str
    summary: str
    names: tuple[str, ...]
    operation: str
    operation_version: int
    inputs: tuple[Input, ...]
    parents: tuple[str, ...]
    config: dict[str, Any]
    seeds: dict[str, int]
    metrics: dict[str, dict[str, Measured]] = Field(default_factory=dict)
    items: dict[str, int] = Field(default_factory=dict)
    provenance: Provenance


def explain(store: Store, artifact_id: str) -> Account:
    """Return how an artifact came to be. No weights are read.

    Raises:
        ArtifactNotFoundError: it does not exist.
        CorruptArtifactError: its manifest is damaged.
    """
    manifest = _without_secrets(store.manifest(artifact_id))
    content, entry, config = manifest.content, entry_of(manifest), dict(flatten(manifest.recipe.config))
    return Account(
        artifact=manifest.id,
        kind=entry.kind,
        summary=entry.summary,
        names=names_by_id(store).get(manifest.id, ()),
        operation=manifest.recipe.operation,
        operation_version=manifest.recipe.version,
        inputs=_inputs(store, manifest),
        parents=manifest.parents,
        config=config,
        seeds={key: value for key, value in config.items() if _is_seed(key, value)},
        metrics=content.measurements(),
        items=content.items if isinstance(content, EvaluationContent) else {},
        provenance=manifest.provenance,
    )


def _without_secrets(manifest: Manifest) -> Manifest:
    """Return a manifest whose places hold no credentials, as those that were recorded by an older program may."""
    sources = {role: without_secrets(place) for role, place in manifest.provenance.sources.items()}
    return manifest.model_copy(update={"provenance": manifest.provenance.model_copy(update={"sources": sources})})


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested objects under their dotted keys; lists count as leaves, empty objects have none."""
    if not isinstance(value, dict):
        yield prefix, value
        return
    for key, item in value.items():
        yield from flatten(item, f"{prefix}.{key}" if prefix else str(key))


def _is_seed(key: str, value: Any) -> bool:
    return key.rpartition(".")[2] == "seed" and isinstance(value, int)


def _inputs(store: Store, manifest: Manifest) -> tuple[Input, ...]:
    """Return a recipe's inputs; those that are files beside a checkpoint's tensors count with the checkpoint.

    What was read besides is known by its place alone: the base that a delta was rebuilt on to be measured.
    """
    given, sources = manifest.recipe.inputs, manifest.provenance.sources
    found = []
    for role in given:
        if role == "files" or role.endswith("_files"):
            continue
        value = given[role]
        files = given.get(f"{role}_files", given.get("files"))
        found.append(
            Input(
                role=role,
                id=value if isinstance(value, str) else "",
                location=sources.get(role, ""),
                tensors=len(value) if isinstance(value, dict) else _tensors(store, manifest, role),
                files=len(files) if isinstance(files, dict) else None,
            )
        )
    besides = [Input(role=role, location=place) for role, place in sources.items() if role not in given]
    return (*found, *besides)


def _tensors(store: Store, manifest: Manifest, role: str) -> int | None:
    """Return how many tensors a delta's blocks read of an input; none where it has no blocks or one is not whole."""
    if not manifest.content.pointers():
        return None
    names: set[str] = set()  # a lossy delta that this one is over has read the same
    for pointer in manifest.content.pointers():
        try:
            read = store.manifest(pointer.id).recipe.inputs.get(role)
        except (ArtifactNotFoundError, CorruptArtifactError):
            return None
        names.update(read if isinstance(read, dict) else ())
    return len(names) or None
