"""Lineage events, derived from catalogue entries: which artifact was made from what, in OpenLineage's terms.

Nothing here depends on OpenLineage's library, or on whether a receiver is configured.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from urllib.parse import unquote
from uuid import UUID, uuid5

from impart_core.base.text import without_secrets
from impart_core.checkpoint.location import is_remote
from impart_core.store.catalog import CatalogEntry

_LONGEST_ERROR = 2000
EventType = Literal["START", "COMPLETE", "FAIL", "ABORT"]


@dataclass(frozen=True)
class Dataset:
    """A checkpoint, an artifact, or a name.

    Attributes:
        namespace: where it lies.
        name: which it is, there.
        kind: an artifact's kind; None for a checkpoint.
        bytes: its size, where a stage tells.
        cached: whether it was there before the run, likewise.
        version: of a name, the id of the artifact that it points to.
    """

    namespace: str
    name: str
    kind: str | None = None
    bytes: int | None = None
    cached: bool | None = None
    version: str | None = None


def checkpoint_dataset(location: str) -> Dataset:
    """Return a checkpoint as a dataset: `file` and a path, `s3://bucket` and a key, `hf://org` and a name."""
    scheme, _, place = public_url(location).rpartition("::")[2].partition("://")
    if scheme == "file":
        return Dataset("file", unquote(place))
    bucket, _, key = place.partition("/")
    return Dataset(f"{scheme}://{bucket}", key or "/")


def artifact_dataset(
    store: str, artifact_id: str, kind: str | None = None, bytes: int | None = None, cached: bool | None = None
) -> Dataset:
    """Return an artifact as a dataset: the store's URL, and its place in there."""
    return Dataset(public_url(store), f"artifacts/{artifact_id}", kind, bytes, cached)


def name_dataset(store: str, name: str, artifact_id: str | None = None) -> Dataset:
    """Return a name as a dataset, the same one whatever it points to: that is its version."""
    return Dataset(public_url(store), f"refs/{name}", version=artifact_id)


def public_url(location: str) -> str:
    """Return a folder, Hub id or URL as a URL that holds no credentials."""
    if "://" not in location and is_remote(location):
        return f"hf://{location}"
    if "://" not in location or location.startswith("file://"):
        return Path(location.removeprefix("file://")).expanduser().absolute().as_uri()
    return without_secrets(location).rstrip("/")


@dataclass(frozen=True)
class Event:
    """A run's start or end.

    Attributes:
        type: which.
        kind: whether it made one artifact, as part of a flow run, or is that flow run.
        run: id of the run.
        job: the kind of artifact, or the name of the flow.
        parent: id and name of the flow run that it is part of.
        inputs: what it reads.
        outputs: what it made.
        error: why it failed.
        time: when, UTC.
    """

    type: EventType
    kind: Literal["TASK", "FLOW"]
    run: UUID
    job: str
    parent: tuple[UUID, str] | None = None
    inputs: tuple[Dataset, ...] = ()
    outputs: tuple[Dataset, ...] = ()
    error: str | None = None
    time: datetime = field(default_factory=lambda: datetime.now(UTC))


def events_of(
    entries: Sequence[CatalogEntry], sources: Sequence[str], store: str, flow: tuple[UUID, str], made: Iterable[str]
) -> list[Event]:
    """Return the start and the end of the making of each artifact of a flow run.

    Args:
        entries: the artifacts' catalogue entries.
        sources: where the checkpoints lie that they were made from.
        store: the store's URL.
        flow: id and name of the flow run.
        made: ids of those that the run made; it found the others.
    """
    new, checkpoints, events = set(made), tuple(map(checkpoint_dataset, sources)), []
    kinds = {entry.id: entry.kind for entry in entries}
    for entry in entries:
        run = uuid5(flow[0], entry.id)
        inputs = (*checkpoints, *(artifact_dataset(store, parent, kinds.get(parent)) for parent in entry.parents))
        output = artifact_dataset(store, entry.id, entry.kind, entry.bytes, entry.id not in new)
        started = datetime.fromisoformat(entry.started) if entry.started else datetime.now(UTC)
        events += [
            Event("START", "TASK", run, entry.kind, flow, inputs, time=started),
            Event("COMPLETE", "TASK", run, entry.kind, flow, inputs, (output,)),
        ]
    return events


def end_of(error: BaseException) -> tuple[Literal["FAIL", "ABORT"], str]:
    """Return how a run ends by an error, and what to say of it without secrets."""
    text = without_secrets(f"{type(error).__name__}: {error}")[:_LONGEST_ERROR]
    return ("FAIL" if isinstance(error, Exception) else "ABORT"), text
