"""What stages read and make, as OpenLineage datasets: named by its rules, and without secrets."""

import re
from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path
from urllib.parse import unquote

from impart_tasks.references import (
    BlockJob,
    BlockResult,
    DeltaJob,
    DeltaResult,
    DistilJob,
    EvaluationJob,
    EvaluationResult,
    FactorsResult,
    LayerJob,
    MadeText,
    ScalesResult,
    TextJob,
)

from impart_core.checkpoint.location import is_remote

_USER = re.compile(r"(?P<scheme>[\w+.-]+)://(?P<user>[^/\s]*)@")
_QUERY = re.compile(r"(://[^\s?]*)\?\S+")
_CONTAINER_BEFORE_AT = ("abfs", "wasb")  # Azure's URLs name a container where others name a user


@dataclass(frozen=True)
class Dataset:
    """A checkpoint or an artifact.

    Attributes:
        namespace: where it lies.
        name: which it is, there.
        kind: an artifact's kind; None for a checkpoint.
        bytes: its size, where a stage tells.
        cached: whether it was there before the run, likewise.
    """

    namespace: str
    name: str
    kind: str | None = None
    bytes: int | None = None
    cached: bool | None = None


def checkpoint_dataset(location: str) -> Dataset:
    """Return a checkpoint as a dataset: `file` and a path, `s3://bucket` and a key, `hf://org` and a name."""
    scheme, _, place = public_url(location).rpartition("::")[2].partition("://")
    if scheme == "file":
        return Dataset("file", unquote(place))
    bucket, _, key = place.partition("/")
    return Dataset(f"{scheme}://{bucket}", key or "/")


def artifact_dataset(
    store: str, artifact_id: str, kind: str, bytes: int | None = None, cached: bool | None = None
) -> Dataset:
    """Return an artifact as a dataset: the store's URL, and its place in there."""
    return Dataset(public_url(store), f"artifacts/{artifact_id}", kind, bytes, cached)


def public_url(location: str) -> str:
    """Return a folder, Hub id or URL as a URL that holds no credentials."""
    if "://" not in location and is_remote(location):
        return f"hf://{location}"
    if "://" not in location or location.startswith("file://"):
        return _path(location).as_uri()
    return without_secrets(location).rstrip("/")


def without_secrets(text: str) -> str:
    """Return a text with user, password and query taken out of every URL in it."""
    return _QUERY.sub(r"\1", _USER.sub(_kept_user, text))


def _kept_user(found: re.Match[str]) -> str:
    names_container = found["scheme"].startswith(_CONTAINER_BEFORE_AT) and ":" not in found["user"]
    return found[0] if names_container else f"{found['scheme']}://"


def _path(location: str) -> Path:
    return Path(location.removeprefix("file://")).expanduser().absolute()


@singledispatch
def inputs_of(job: object) -> tuple[Dataset, ...]:  # noqa: ARG001 - told apart by its type
    """Return what a stage reads, by what it is given; a kind that is not known here reads nothing."""
    return ()


@inputs_of.register
def _(job: str) -> tuple[Dataset, ...]:
    return (checkpoint_dataset(job),)


@inputs_of.register
def _(job: BlockJob) -> tuple[Dataset, ...]:
    kinds = ("calibration", "scales") if job.scales else ()
    found = (artifact_dataset(job.store, job.recipe.inputs[kind], kind) for kind in kinds)
    return checkpoint_dataset(job.base), checkpoint_dataset(job.finetuned), *found


@inputs_of.register
def _(job: TextJob) -> tuple[Dataset, ...]:
    return (checkpoint_dataset(job.finetuned),)


@inputs_of.register
def _(job: LayerJob) -> tuple[Dataset, ...]:
    return *inputs_of(job.job), artifact_dataset(job.job.store, job.calibration, "calibration")


@inputs_of.register
def _(job: DistilJob) -> tuple[Dataset, ...]:
    text = artifact_dataset(job.store, job.calibration, "calibration")
    return checkpoint_dataset(job.base), checkpoint_dataset(job.finetuned), text


@inputs_of.register
def _(job: DeltaJob) -> tuple[Dataset, ...]:
    blocks = (artifact_dataset(job.store, made.id, "block") for made in job.made if made.kind == "block")
    return checkpoint_dataset(job.base), checkpoint_dataset(job.finetuned), *blocks


@inputs_of.register
def _(job: EvaluationJob) -> tuple[Dataset, ...]:
    if job.base is None:
        return (checkpoint_dataset(job.model),)
    return checkpoint_dataset(job.base), artifact_dataset(job.store, job.model, "delta")


@singledispatch
def outputs_of(result: object, store: str) -> tuple[Dataset, ...]:  # noqa: ARG001 - likewise
    """Return what a stage has made, by what it returned, in the store of its job."""
    return ()


@outputs_of.register
def _(result: FactorsResult, store: str) -> tuple[Dataset, ...]:
    return (artifact_dataset(store, result.id, "factors", cached=result.cached),)


@outputs_of.register
def _(result: MadeText, store: str) -> tuple[Dataset, ...]:
    return (artifact_dataset(store, result.id, "calibration", cached=result.cached),)


@outputs_of.register
def _(result: ScalesResult, store: str) -> tuple[Dataset, ...]:
    return (artifact_dataset(store, result.id, "scales", cached=result.cached),)


@outputs_of.register
def _(result: BlockResult, store: str) -> tuple[Dataset, ...]:
    return (artifact_dataset(store, result.id, "block", bytes=result.bytes, cached=result.cached),)


@outputs_of.register
def _(result: EvaluationResult, store: str) -> tuple[Dataset, ...]:
    return (artifact_dataset(store, result.id, "evaluation", cached=result.cached),)


@outputs_of.register
def _(result: DeltaResult, store: str) -> tuple[Dataset, ...]:
    return (artifact_dataset(store, result.id, "delta", bytes=result.bytes),) if result.id else ()


def parents_of(result: object, store: str) -> tuple[Dataset, ...]:
    """Return the factors that a result says it was made from, among what its job names."""
    parents = result.entry.parents if isinstance(result, BlockResult) else ()
    return tuple(artifact_dataset(store, parent, "factors") for parent in parents)
