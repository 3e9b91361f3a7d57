"""A whole compression with the library alone, for tests of what comes out of it."""

from pathlib import Path
from typing import Any

import torch

from impart_core.artifacts.calibration_text import calibration_recipe, publish_calibration
from impart_core.artifacts.delta import Delta, open_delta
from impart_core.blocks.request import CompressConfig
from impart_core.calibrate.text import PUBLISHED, CalibrationText
from impart_core.engine.compress import compress as compress_model
from impart_core.engine.executor import ThreadExecutor
from impart_core.engine.requests import CompressRequest
from impart_core.methods import METHODS, QUANTIZING
from impart_core.store.provenance import Stopwatch
from impart_core.store.store import Store


def config_of(cr: float = 4.0, **settings: Any) -> CompressConfig:
    """Return a compression's settings; options are given as `options={...}`."""
    return CompressConfig(cr=cr, **settings)


def small_options(method: str) -> dict[str, Any]:
    """Return options with which a method takes tiny models, without text: default ladders ask for more vectors."""
    ladders = "ladder" in METHODS.get(method).options_model.model_fields
    nearest = {"solver": "nearest"} if method in QUANTIZING and method != "bitdelta" else {}
    return {"ladder": "8x2,3x8,2", **nearest} if ladders else nearest


def compress(
    store: Store,
    base: Path,
    finetuned: Path,
    config: CompressConfig,
    *,
    keep_factors: bool = False,
    tokens: torch.Tensor | None = None,
    over: str | None = None,
) -> Delta:
    """Compress with one worker and open the delta; tokens, (sequences, length), are those of a calibration.

    `over` is the lossy delta to which the residual is stored.
    """
    text = None
    if tokens is not None:
        recipe = calibration_recipe(tokens)
        publish_calibration(store, recipe, tokens, Stopwatch())
        text = CalibrationText(source=f"{PUBLISHED}{recipe.id}")
    request = CompressRequest(
        base=str(base),
        finetuned=str(finetuned),
        config=config,
        store=store.url,
        device="cpu",
        workers=1,
        keep_factors=keep_factors,
        calibration=text,
        over=over,
    )
    with ThreadExecutor(1) as executor:
        made = compress_model(request, executor).report.artifact
    store.objects.delete(store.objects.find("catalog"))  # what follows from manifests alone is looked at
    return open_delta(store, made)


def stored_path(delta: Delta, number: int = 0) -> Path:
    """Return where the codes of one block of a delta in a folder store lie."""
    block = delta.blocks[number]
    return Path(delta.store.url) / "artifacts" / block.id / block.files[0].path


def flip(path: Path, position: int) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
