"""The library's verb `merge`, apart from the others: merge methods are not loaded for them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

from impart_core.artifacts.delta import Delta
from impart_core.base.arguments import require_kind
from impart_core.base.errors import ConfigError
from impart_core.base.settings import nearest
from impart_core.blocks.request import CompressConfig
from impart_core.engine import merge as merging
from impart_core.engine.executor import Progress, ThreadExecutor
from impart_core.engine.library import Place, Ref, opened_store
from impart_core.engine.merge import MergeReport
from impart_core.engine.requests import MergeRequest
from impart_core.merging.file import MergeFile, merge_of, read_merge_file
from impart_core.merging.methods import MERGE_METHODS
from impart_core.store.store import Store


class MergeKeywords(TypedDict, total=False):
    """Where a merged model goes, and how it is merged; see `MergeRequest`. `seed` is that of what a method draws."""

    out: Place
    store: Place | Store
    name: str
    seed: int
    device: str
    workers: int
    overwrite: bool


def merge(
    models: Place | Sequence[Ref | Path] | Mapping[str, Any],
    *,
    method: str = "task_arithmetic",
    weights: float | Sequence[float] | None = None,
    base: Place | None = None,
    options: Mapping[str, Any] | None = None,
    sparsify: CompressConfig | Mapping[str, Any] | None = None,
    compress: CompressConfig | Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    **keywords: Unpack[MergeKeywords],
) -> MergeReport:
    """Merge models into a folder, or into a delta of their base, and publish what was merged how.

    Args:
        models: checkpoints, deltas, or names or ids of deltas; or a merge file's path, or what such a file holds, which
            then says all that the next six arguments do.
        method: the merge method.
        weights: one for each model, or one for all; None: 1, where the method has weights.
        base: what the models were fine-tuned from; None: what deltas say they were made against.
        options: the method's other parameters, such as `{"density": 0.4}`.
        sparsify: how each model is compressed before it is merged.
        compress: how the merged model is compressed, as a delta of the base.
        progress: as for `compress`.
        keywords: where it goes and how it is run, by name; see `MergeKeywords`.

    Raises:
        ImpartError: the request cannot be carried out; the message says what to change.
    """
    given: dict[str, Any] = dict(keywords)
    opened = opened_store(given.pop("store", None))
    require_kind(models, (str, Path, Sequence, Mapping), "models", "a list of models, a merge file, or what it holds")
    require_kind(method, str, "method", "the name of a merge method")
    require_kind(options, (Mapping, type(None)), "options", "the method's parameters by name")
    stages: tuple[MergeFile, ...]
    if isinstance(models, Mapping):
        stages = (merge_of(models),)
    elif isinstance(models, str | Path):
        stages = read_merge_file(Path(models))
    else:
        if weights is None and "weight" in MERGE_METHODS.get(method).options:
            weights = 1.0
        written = {
            "merge_method": method,
            "models": _models(models, weights),
            "parameters": dict(options or {}),
            "impart": {"sparsify": sparsify, "compress": compress, "seed": given.pop("seed", 0)},
        }
        stages = (merge_of(written if base is None else {**written, "base_model": str(base)}),)
    unknown = next((name for name in given if name not in MergeKeywords.__annotations__), None)
    if unknown:
        raise ConfigError(f"Unknown setting {unknown!r}.{nearest(unknown, MergeKeywords.__annotations__)}")
    out = given.pop("out", None)
    require_kind(out, (str, Path, type(None)), "out", "the folder to make")
    request = MergeRequest(stages=stages, out=None if out is None else Path(out), store=opened.url, **given)
    with ThreadExecutor(request.workers) as executor:
        return merging.merge(request, executor, progress=progress).report


def _models(models: Sequence[Ref | Path], weights: float | Sequence[float] | None) -> list[dict[str, Any]]:
    """Return models and their weights as a merge file lists them."""
    require_kind(weights, (int, float, Sequence, type(None)), "weights", "a number for each model, or one for all")
    each: Sequence[float | None] = (
        [weights] * len(models) if weights is None or isinstance(weights, int | float) else list(weights)
    )
    if len(each) != len(models):
        raise ConfigError(f"{len(each)} weights are given for {len(models)} models. Give one for each, or one for all.")
    return [
        {
            "model": model.manifest.id if isinstance(model, Delta) else str(model),
            "parameters": {} if weight is None else {"weight": weight},
        }
        for model, weight in zip(models, each, strict=True)
    ]
