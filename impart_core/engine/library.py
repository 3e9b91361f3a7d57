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
from impart_core.base.arguments import require_kind
from impart_core.base.errors import ConfigError
from impart_core.base.numerics import resolve_device
from impart_core.base.settings import nearest
from impart_core.blocks.request import CompressConfig
from impart_core.calibrate.text import PUBLISHED, CalibrationText, require_tokens
from impart_core.engine import compress as compressing
from impart_core.engine import evaluate as evaluating
from impart_core.engine import reconstruct as rebuilding
from impart_core.engine.bases import base_of
from impart_core.engine.executor import Progress, ThreadExecutor
from impart_core.engine.preflight import Checked
from impart_core.engine.quantize import quantize_request
from impart_core.engine.references import EvaluationResult
from impart_core.engine.requests import (
    CompressRequest,
    EvaluateRequest,
    QuantizeRequest,
    ReconstructRequest,
    Trust,
    absolute,
)
from impart_core.evaluation.options import MeasureOptions
from impart_core.evaluation.result import Split
from impart_core.store.names import resolve
from impart_core.store.provenance import Stopwatch
from impart_core.store.store import Store

logger = logging.getLogger(__name__)

Place = str | Path
Ref = str | Delta
_TEXT = "the name of text (a file, hub:…, tinyzoo:…), a CalibrationText, or token ids as a tensor of integers"


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
    """What a compression is asked for besides; see `CompressConfig`, and for `over` `CompressRequest`."""

    method: str
    seed: int
    accounting: str
    options: Mapping[str, Any]
    factors_for: float
    embeddings: str
    embeddings_cr: float
    over: Ref


class QuantizeKeywords(RunKeywords, total=False):
    """What the quantisation of a delta is asked for besides; see `QuantizeRequest`."""

    method: str
    seed: int
    options: Mapping[str, Any]
    base: str
    finetuned: str


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
    cr: float | CompressConfig | None = None,
    *,
    progress: Progress | None = None,
    **keywords: Unpack[CompressKeywords],
) -> Delta:
    """Compress the delta between two checkpoints, publish it in a store, and return it opened.

    What the store holds already is reused; an interrupted call goes on where it stopped.

    Args:
        base: the base checkpoint: a folder, Hub id or fsspec URL.
        finetuned: the checkpoint fine-tuned from it.
        cr: compression ratio of the projections against their 16-bit size, or all settings at once; None with
            `method="lossless"` alone.
        progress: called with a stage, pieces done, their number, and what the last one was.
        keywords: settings and how it is run, by name; see `CompressKeywords`.

    Raises:
        ImpartError: the request cannot be carried out; the message says what to change.
    """
    given = dict(keywords)
    settings = {name: given.pop(name) for name in CompressConfig.model_fields if name in given}
    over = given.pop("over", None)
    if isinstance(cr, CompressConfig):
        if settings:
            raise ConfigError(f"A whole configuration is given, and {', '.join(settings)} besides. Put all into it.")
        config = cr
    else:
        config = CompressConfig(**{"cr": cr, **settings})
    request = CompressRequest(
        base=absolute(base),
        finetuned=absolute(finetuned),
        config=config,
        over=over.id if isinstance(over, Delta) else over,
        **_run(given, RunKeywords),
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
    require_kind(out, (str, Path), "out", "the folder to make")
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
    require_kind(tasks, (str, list, tuple), "tasks", "names of tasks, or one name")
    require_kind(options, (MeasureOptions, Mapping, type(None)), "options", "settings by name")
    # Text may be a name or an id; all else is a place, or nothing.
    name = model.manifest.id if isinstance(model, Delta) else model if isinstance(model, str) else absolute(model)
    request = EvaluateRequest(
        model=name,
        base=None if base is None else absolute(base),
        tasks=(tasks,) if isinstance(tasks, str) else tuple(tasks),
        measuring=options if isinstance(options, MeasureOptions) else MeasureOptions(**_named(options or {})),
        store=model.store.url if isinstance(model, Delta) else opened_store(store).url,
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
    require_kind(ref, str, "The delta", "its name or id")
    opened = opened_store(store)
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


def opened_store(store: Place | Store | None) -> Store:
    """Return a store as it is, or opened; None: IMPART_STORE, else the user's own."""
    return store if isinstance(store, Store) else Store(store)


def _named(options: Mapping[str, Any]) -> dict[str, Any]:
    return {str(name): value for name, value in options.items()}


def _run(given: dict[str, Any], known: Any) -> dict[str, Any]:
    """Return keywords as the fields of a request: a store by its URL, text as what names it.

    Raises:
        ConfigError: one is not known, with the nearest that is; or calibration is no text.
    """
    names = [*known.__annotations__, *CompressConfig.model_fields]
    for name in given:
        if name not in known.__annotations__:
            raise ConfigError(f"Unknown setting {name!r}.{nearest(name, names)}")
    store = opened_store(given.get("store"))
    given["store"] = store.url
    text = given.get("calibration")
    if isinstance(text, torch.Tensor):
        require_tokens(text)
        recipe = calibration_recipe(text)
        publish_calibration(store, recipe, text, Stopwatch())
        text = f"{PUBLISHED}{recipe.id}"
    require_kind(text, (str, CalibrationText, Mapping, type(None)), "calibration", _TEXT)
    if isinstance(text, str):
        given["calibration"] = CalibrationText(source=text)
    return given


def _compress(request: CompressRequest, checked: Checked | None, progress: Progress | None) -> Delta:
    with ThreadExecutor(request.workers) as executor:
        done = compressing.compress(request, executor, checked=checked, progress=progress)
    for note in done.report.notes:
        logger.warning("%s", note)
    return deltas.open_delta(Store(request.store), done.report.artifact)
