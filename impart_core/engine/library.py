"""The library's own verbs, each in one line with defaults: what `import impart_core as impart` gives."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch

from impart_core.apply import load
from impart_core.artifacts import delta as deltas
from impart_core.artifacts.calibration_text import calibration_recipe, publish_calibration
from impart_core.artifacts.delta import Delta
from impart_core.base.errors import ConfigError
from impart_core.base.numerics import resolve_device
from impart_core.base.settings import nearest
from impart_core.blocks.request import CompressConfig
from impart_core.calibrate.text import PUBLISHED, CalibrationText, require_tokens
from impart_core.engine import compress as compressing
from impart_core.engine import evaluate as evaluating
from impart_core.engine import merge as merging
from impart_core.engine import reconstruct as rebuilding
from impart_core.engine.bases import base_of
from impart_core.engine.executor import Progress, ThreadExecutor
from impart_core.engine.merge import MergeReport
from impart_core.engine.preflight import Checked
from impart_core.engine.quantize import quantize_request
from impart_core.engine.references import EvaluationResult
from impart_core.engine.requests import (
    CompressRequest,
    EvaluateRequest,
    MergeRequest,
    QuantizeRequest,
    ReconstructRequest,
    Trust,
    absolute,
)
from impart_core.evaluation.options import MeasureOptions
from impart_core.evaluation.result import Split
from impart_core.merging.file import MergeFile, merge_of, read_merge_file
from impart_core.merging.methods import MERGE_METHODS
from impart_core.store.names import resolve
from impart_core.store.provenance import Stopwatch
from impart_core.store.store import Store, default_store_url

logger = logging.getLogger(__name__)

Place = str | Path
Ref = str | Delta


class RunKeywords(TypedDict, total=False):
    """How a compression is run; see `CompressRequest`. Text may also be a source or token ids, (sequences, length)."""

    store: Place | Store
    name: str
    device: str
    workers: int
    keep_factors: bool
    calibration: str | CalibrationText | torch.Tensor
    trust: Trust


class CompressKeywords(RunKeywords, total=False):
    """What a compression is asked for besides; see `CompressConfig`."""

    method: str
    seed: int
    accounting: str
    options: Mapping[str, Any]
    factors_for: float
    embeddings: str
    embeddings_cr: float


class QuantizeKeywords(RunKeywords, total=False):
    """What the quantisation of a delta is asked for besides; see `QuantizeRequest`."""

    method: str
    seed: int
    options: Mapping[str, Any]
    base: str
    finetuned: str


class MergeKeywords(TypedDict, total=False):
    """Where a merged model goes, and how it is merged; see `MergeRequest`. `seed` is that of what a method draws."""

    out: Place
    store: Place | Store
    name: str
    seed: int
    device: str
    workers: int
    overwrite: bool


class EvaluateKeywords(TypedDict, total=False):
    """What an evaluation is asked for besides; see `EvaluateRequest`."""

    split: Split
    limit: int | None
    run_code: bool
    run_code_without_sandbox: bool
    device: str


def compress(
    base: Place,
    finetuned: Place,
    cr: float | CompressConfig,
    *,
    progress: Progress | None = None,
    **keywords: Unpack[CompressKeywords],
) -> Delta:
    """Compress the delta between two checkpoints, publish it in a store, and return it opened.

    What the store holds already is reused; an interrupted call goes on where it stopped.

    Args:
        base: the base checkpoint: a folder, Hub id or fsspec URL.
        finetuned: the checkpoint fine-tuned from it.
        cr: compression ratio of the projections against their 16-bit size, or all settings at once.
        progress: called with a stage, pieces done, their number, and what the last one was.
        keywords: settings and how it is run, by name; see `CompressKeywords`.

    Raises:
        ImpartError: the request cannot be carried out; the message says what to change.
    """
    given = dict(keywords)
    settings = {name: given.pop(name) for name in CompressConfig.model_fields if name in given}
    if isinstance(cr, CompressConfig):
        if settings:
            raise ConfigError(f"A whole configuration is given, and {', '.join(settings)} besides. Put all into it.")
        config = cr
    else:
        config = CompressConfig(cr=cr, **settings)
    request = CompressRequest(
        base=absolute(base), finetuned=absolute(finetuned), config=config, **_run(given, RunKeywords)
    )
    return _compress(request, None, progress)


def quantize(ref: Ref, cr: float, *, progress: Progress | None = None, **keywords: Unpack[QuantizeKeywords]) -> Delta:
    """Compress a published delta again, by a method that quantises, from the factors kept with it.

    Args:
        ref: the delta, or its name or id.
        cr: the compression ratio.
        progress: as for `compress`.
        keywords: settings and how it is run, by name; see `QuantizeKeywords`.

    Raises:
        ImpartError: as for `compress`.
    """
    own = {"store": ref.store} if isinstance(ref, Delta) else {}
    given = _run({**own, **keywords}, QuantizeKeywords)
    name = ref.manifest.id if isinstance(ref, Delta) else ref
    request, checked = quantize_request(QuantizeRequest(ref=name, cr=cr, **given))
    return _compress(request, checked, progress)


def reconstruct(
    ref: Ref,
    base: Place,
    out: Place,
    *,
    store: Place | Store | None = None,
    overwrite: bool = False,
    with_code: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Rebuild a fine-tuned checkpoint as a Hugging Face folder, and return the folder.

    Args:
        ref: the delta, or its name or id.
        base: the checkpoint that it was made against.
        out: the folder to make.
        store: where it is looked for by name; None: IMPART_STORE, else the user's own.
        overwrite: whether `out` may be replaced when it holds files.
        with_code: whether Python code that the delta brings is written too; see `Delta.code`.
        progress: called with tensors done and their number.

    Raises:
        ImpartError: the request cannot be carried out; the message says what to change.
    """
    if not isinstance(out, str | Path):
        raise ConfigError(f"{out!r:.50} is no folder to make. Give one as out=….")
    delta = open_delta(ref, store)
    request = ReconstructRequest(
        ref=delta.manifest.id,
        base=absolute(base),
        out=Path(out),
        store=delta.store.url,
        overwrite=overwrite,
        with_code=with_code,
    )
    return rebuilding.reconstruct(request, progress).out


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
    opened = _store(given.pop("store", None))
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
    request = MergeRequest(stages=stages, out=None if out is None else Path(out), store=opened.url, **given)
    with ThreadExecutor(request.workers) as executor:
        return merging.merge(request, executor, progress=progress).report


def _models(models: Sequence[Ref | Path], weights: float | Sequence[float] | None) -> list[dict[str, Any]]:
    """Return models and their weights as a merge file lists them."""
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


def evaluate(
    model: Ref | Path,
    tasks: str | Sequence[str],
    *,
    base: Place | None = None,
    options: MeasureOptions | Mapping[str, Any] | None = None,
    store: Place | Store | None = None,
    **keywords: Unpack[EvaluateKeywords],
) -> dict[str, EvaluationResult]:
    """Measure a model with lm-evaluation-harness; what was measured before is taken from the store.

    Args:
        model: a checkpoint's folder, Hub id or URL; or a delta, or its name or id; or an adapter's place.
        tasks: lm-eval task names, or paths of YAML files.
        base: the checkpoint that a delta was made against, or that an adapter was trained on; None: where that of a
            delta lay.
        options: how lm-eval measures it, such as `{"num_fewshot": 5}`; see `MeasureOptions`.
        store: as for `reconstruct`.
        keywords: what is measured of each task, and whether code is run; see `EvaluateKeywords`.

    Returns:
        What was measured, by task.

    Raises:
        ImpartError: the request cannot be carried out; the message says what to change.
    """
    # Text may be a name or an id; all else is a place, or nothing.
    name = model.manifest.id if isinstance(model, Delta) else model if isinstance(model, str) else absolute(model)
    request = EvaluateRequest(
        model=name,
        base=None if base is None else absolute(base),
        tasks=(tasks,) if isinstance(tasks, str) else tuple(tasks),
        measuring=options if isinstance(options, MeasureOptions) else MeasureOptions(**(options or {})),
        store=model.store.url if isinstance(model, Delta) else _store(store).url,
        **keywords,
    )
    with ThreadExecutor(1) as executor:
        return {result.task: result for result in evaluating.evaluate(request, executor)}


def open_delta(ref: Ref, store: Place | Store | None = None) -> Delta:
    """Open a delta by its name, its id, or the first six or more digits of its id.

    Raises:
        ArtifactNotFoundError: there is none.
        ConfigError: the artifact is not a delta.
    """
    if isinstance(ref, Delta):
        return ref
    if not isinstance(ref, str):
        raise ConfigError(f"A delta is opened by its name or id, not by a {type(ref).__name__}.")
    opened = _store(store)
    return deltas.open_delta(opened, resolve(opened, ref))


def load_model(ref: Ref, base: Place | None = None, *, device: str = "auto", store: Place | Store | None = None) -> Any:
    """Return the fine-tuned model of a delta as one of transformers; nothing is written to disk.

    Args:
        ref: the delta, or its name or id.
        base: the checkpoint that it was made against; None: where that lay.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        store: as for `reconstruct`.

    Raises:
        ImpartError: the request cannot be carried out; the message says what to change.
    """
    delta = open_delta(ref, store)
    return load.load_model(delta, base_of(delta, base), resolve_device(device))


def load_state_dict(
    ref: Ref, base: Place | None = None, *, store: Place | Store | None = None
) -> dict[str, torch.Tensor]:
    """Return the tensors of the fine-tuned checkpoint by name, as `reconstruct` writes them; arguments as above."""
    delta = open_delta(ref, store)
    return load.load_state_dict(delta, base_of(delta, base))


def _store(store: Place | Store | None) -> Store:
    return store if isinstance(store, Store) else Store(store or default_store_url())


def _run(given: dict[str, Any], known: Any) -> dict[str, Any]:
    """Return keywords as the fields of a request: a store by its URL, text as what names it.

    Raises:
        ConfigError: one is not known; with the nearest that is.
    """
    names = [*known.__annotations__, *CompressConfig.model_fields]
    for name in given:
        if name not in known.__annotations__:
            raise ConfigError(f"Unknown setting {name!r}.{nearest(name, names)}")
    store = _store(given.get("store"))
    given["store"] = store.url
    text = given.get("calibration")
    if isinstance(text, torch.Tensor):
        require_tokens(text)
        recipe = calibration_recipe(text)
        publish_calibration(store, recipe, text, Stopwatch())
        text = f"{PUBLISHED}{recipe.id}"
    if isinstance(text, str):
        given["calibration"] = CalibrationText(source=text)
    return given


def _compress(request: CompressRequest, checked: Checked | None, progress: Progress | None) -> Delta:
    with ThreadExecutor(request.workers) as executor:
        done = compressing.compress(request, executor, checked=checked, progress=progress)
    for note in done.report.notes:
        logger.warning("%s", note)
    return deltas.open_delta(Store(request.store), done.report.artifact)
