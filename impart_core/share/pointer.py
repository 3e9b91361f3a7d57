"""A delta for a tracking server: where it lies, what it was made with, and how good it is; never its weights."""

import math
from collections.abc import Iterable, Iterator, Mapping

from impart_core.artifacts.delta import open_delta
from impart_core.base.canonical import canonical_json
from impart_core.base.settings import Frozen
from impart_core.lineage.events import public_url
from impart_core.lineage.why import flatten
from impart_core.store.catalog import CatalogEntry, scan
from impart_core.store.store import Store
from impart_core.store.who import without_home

_LONGEST = 250  # characters of a parameter's value; servers of some years refuse more


class PointerRecord(Frozen):
    """A delta in a tracking server's terms.

    Attributes:
        artifact: its id.
        name: what it is registered as: the name without its label.
        label: the label of the name, such as `prod`; empty: none.
        source: its address in the store; of a folder, `impart://artifacts/ID`.
        params: its settings.
        metrics: ratios, bytes, and what was measured: `before/…` of the fine-tuned model, `after/…` of the delta.
        tags: ids and places that lead back to it.
    """

    artifact: str
    name: str
    label: str
    source: str
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]


def pointer_of(
    store: Store, ref: str, artifact_id: str, entries: Iterable[CatalogEntry] | None = None
) -> PointerRecord:
    """Return what is registered of a delta.

    Args:
        store: the store.
        ref: the name that it is known by.
        artifact_id: its id.
        entries: the store's, where they have been read.

    Raises:
        ArtifactNotFoundError: it, or a block of it, is not there.
        ConfigError: the artifact is no delta.
        CorruptArtifactError: a manifest is damaged.
    """
    delta = open_delta(store, artifact_id)
    place = without_home(public_url(store.url))
    config = delta.manifest.recipe.config
    params = {
        key: value if isinstance(value, str) else canonical_json(value).decode() for key, value in flatten(config)
    }
    ratios = {"cr_model": delta.cr_model, "cr_projection": delta.content.cr_projection}
    sizes = {"bytes": delta.bytes, "finetuned_bytes": delta.content.finetuned_bytes}
    measured = dict(
        _measured(scan(store).values() if entries is None else entries, artifact_id, delta.content.finetuned)
    )
    name, _, label = ref.partition("@")
    return PointerRecord(
        artifact=artifact_id,
        name=name,
        label=label,
        # A server takes no folder as a source that is not its own; where it lies stands among the tags.
        source=f"{'impart:/' if store.objects.is_local else place}/artifacts/{artifact_id}",
        params={key: value[:_LONGEST] for key, value in params.items()},
        metrics={
            key: float(value)
            for key, value in {**ratios, **sizes, **measured}.items()
            if isinstance(value, float | int) and math.isfinite(value)
        },
        tags={
            "impart.artifact": artifact_id,
            "impart.ref": ref,
            "impart.store": place,
            "impart.base": delta.content.base,
            "impart.finetuned": delta.content.finetuned,
            **_sources(delta.manifest.provenance.sources),
        },
    )


def _sources(sources: Mapping[str, str]) -> dict[str, str]:
    return {f"impart.{role}_place": without_home(place) for role, place in sources.items()}


def _measured(entries: Iterable[CatalogEntry], delta: str, finetuned: str) -> Iterator[tuple[str, float]]:
    """Give the metrics of a delta and of its fine-tuned model by name; of several evaluations the latest counts."""
    for entry in sorted(entries, key=lambda entry: entry.started):
        when = "after" if delta in entry.parents else "before"
        if entry.metrics and (when == "after" or entry.checkpoints.get("checkpoint") == finetuned):
            for task, metrics in entry.metrics.items():
                for metric, (value, error) in metrics.items():
                    yield f"{when}/{task}/{metric}", value
                    if error is not None:
                        yield f"{when}/{task}/{metric}_stderr", error
