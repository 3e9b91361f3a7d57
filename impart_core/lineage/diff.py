"""What differs between two artifacts: settings, inputs, content, code, and what evaluations measured of them."""

import math
from collections.abc import Mapping
from typing import Any

from impart_core.artifacts.delta import DeltaContent
from impart_core.artifacts.evaluation import EvaluationContent
from impart_core.base.errors import ArtifactNotFoundError, CorruptArtifactError
from impart_core.base.settings import Frozen
from impart_core.lineage.why import flatten
from impart_core.store.catalog import scan
from impart_core.store.manifest import Manifest, Measured
from impart_core.store.store import Store

ABSENT = "absent"
_Key = tuple[str, str, str, int | None, str]  # task, metric, split, limit, and how else it was measured


class Change(Frozen):
    """One thing that differs, by its dotted key; `absent` stands for the value on a side that has none."""

    what: str
    a: Any
    b: Any


class MetricChange(Frozen):
    """A metric that differs between two models measured in the same way.

    Attributes:
        task: lm-eval task.
        metric: its name.
        split: which split; of two evaluations that differ in it, both.
        limit: number of items that it was limited to, if it was.
        a: value and standard error of the first.
        b: those of the second.
        difference: b − a.
        stderr: its standard error as if the two were independent, √(a² + b²): as both answered the same items,
            the true one is mostly smaller. None where one side has none.
    """

    task: str
    metric: str
    split: str
    limit: int | None = None
    a: Measured
    b: Measured
    difference: float
    stderr: float | None


class Difference(Frozen):
    """What differs between two artifacts; what is equal is not listed.

    Attributes:
        a: id of the first.
        b: id of the second.
        same: whether they are one artifact.
        operation: changes of kind, operation and its version.
        config: changes of settings.
        inputs: changes of what it was made from, by role, and by tensor or file name where these count.
        content: changes of ratios, bytes and blocks.
        provenance: changes of code, libraries and platform, which are no part of the id.
        metrics: changes of what was measured.
        shared_blocks: of two deltas, how many blocks they share.
    """

    a: str
    b: str
    same: bool
    operation: tuple[Change, ...] = ()
    config: tuple[Change, ...] = ()
    inputs: tuple[Change, ...] = ()
    content: tuple[Change, ...] = ()
    provenance: tuple[Change, ...] = ()
    metrics: tuple[MetricChange, ...] = ()
    shared_blocks: int | None = None


def diff(store: Store, a: str, b: str) -> Difference:
    """Compare two artifacts, of the same kind or not, by id.

    Raises:
        ArtifactNotFoundError: one does not exist.
        CorruptArtifactError: a manifest is damaged.
    """
    one, two = store.manifest(a), store.manifest(b)
    if one.id == two.id:
        return Difference(a=one.id, b=two.id, same=True)
    alike = one.content.kind == two.content.kind
    contents = _content(one), _content(two)
    if not alike:
        contents = _shared(*contents)
    return Difference(
        a=one.id,
        b=two.id,
        same=False,
        operation=_changes(_operation(one), _operation(two)),
        config=_changes(one.recipe.config, two.recipe.config),
        inputs=_changes(one.recipe.inputs, two.recipe.inputs),
        content=_changes(*contents),
        provenance=_changes(_code(one), _code(two)),
        metrics=_metrics(store, one, two),
        shared_blocks=_shared_blocks(one, two),
    )


def _changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Change, ...]:
    ours, theirs = dict(flatten(dict(a))), dict(flatten(dict(b)))
    return tuple(
        Change(what=key, a=ours.get(key, ABSENT), b=theirs.get(key, ABSENT))
        for key in dict.fromkeys([*ours, *theirs])
        if key not in ours or key not in theirs or ours[key] != theirs[key]
    )


def _shared(a: dict[str, Any], b: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    return {key: a[key] for key in a if key in b}, {key: b[key] for key in b if key in a}


def _operation(manifest: Manifest) -> dict[str, Any]:
    recipe = manifest.recipe
    return {"kind": manifest.content.kind, "operation": recipe.operation, "version": recipe.version}


def _code(manifest: Manifest) -> dict[str, Any]:
    made = manifest.provenance
    return made.model_dump(include={"code_version", "code_digest", "libraries", "system"})


def _content(manifest: Manifest) -> dict[str, Any]:
    """Return what an artifact holds, without what its recipe or the comparison of metrics tells already."""
    content = manifest.content
    own = len(manifest.to_json()) + sum(file.size for file in manifest.files)
    if not isinstance(content, DeltaContent):
        return {**content.model_dump(mode="json", exclude={"kind", "metrics"}), "bytes": own}
    size = len(manifest.to_json()) + content.data_bytes
    return {
        "cr_projection": content.cr_projection,
        "cr_model": content.finetuned_bytes / size,
        "bytes": size,
        "projection_bytes": content.projection_bytes,
        "projection_dense_bytes": content.projection_dense_bytes,
        "finetuned_bytes": content.finetuned_bytes,
        "blocks": {pointer.name: {"bytes": pointer.bytes} for pointer in content.blocks},
    }


def _shared_blocks(a: Manifest, b: Manifest) -> int | None:
    if not (isinstance(a.content, DeltaContent) and isinstance(b.content, DeltaContent)):
        return None
    return len({pointer.id for pointer in a.content.blocks} & {pointer.id for pointer in b.content.blocks})


def _metrics(store: Store, a: Manifest, b: Manifest) -> tuple[MetricChange, ...]:
    if isinstance(a.content, EvaluationContent) and isinstance(b.content, EvaluationContent):
        splits = dict.fromkeys(str(made.recipe.config.get("split", "")) for made in (a, b))
        return _paired(_measured(a, " / ".join(splits)), _measured(b, " / ".join(splits)))
    if isinstance(a.content, DeltaContent) and isinstance(b.content, DeltaContent):
        found: dict[str, dict[_Key, Measured]] = {a.id: {}, b.id: {}}
        for entry in scan(store).values():
            for delta in {a.id, b.id}.intersection(entry.parents if entry.metrics else ()):
                try:
                    found[delta] |= _measured(store.manifest(entry.id))
                except (ArtifactNotFoundError, CorruptArtifactError):
                    continue
        return _paired(found[a.id], found[b.id])
    return ()


def _measured(manifest: Manifest, split: str | None = None) -> dict[_Key, Measured]:
    """Return an evaluation's metrics by what two must share to be compared.

    Args:
        manifest: the evaluation's.
        split: given where two evaluations were asked for by name: what they share is then the task alone.
    """
    content, config = manifest.content, manifest.recipe.config
    if not isinstance(content, EvaluationContent):
        return {}
    limit = config.get("limit")
    how: tuple[str, int | None, str] = (split or "", None, "")
    if split is None:
        alike = str([config.get(what) for what in ("definition", "seed", "options")])
        how = (str(config.get("split", "")), limit if isinstance(limit, int) else None, alike)
    return {(task, name, *how): metrics[name] for task, metrics in content.metrics.items() for name in metrics}


def _paired(a: Mapping[_Key, Measured], b: Mapping[_Key, Measured]) -> tuple[MetricChange, ...]:
    changes = []
    for key in sorted(a.keys() & b.keys(), key=str):
        (ours, error), (theirs, other) = a[key], b[key]
        if a[key] == b[key]:
            continue
        both = math.hypot(error, other) if error is not None and other is not None else None
        task, metric, split, limit, _ = key
        changes.append(
            MetricChange(
                task=task,
                metric=metric,
                split=split,
                limit=limit,
                a=a[key],
                b=b[key],
                difference=theirs - ours,
                stderr=both,
            )
        )
    return tuple(changes)
