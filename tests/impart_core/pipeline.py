"""A whole compression with the library alone, for tests of what comes out of it."""

from pathlib import Path
from typing import Any

import torch

from impart_core.artifacts.block import publish_block
from impart_core.artifacts.calibration_text import calibration_recipe
from impart_core.artifacts.delta import Delta, delta_recipe, open_delta, publish_delta
from impart_core.artifacts.factors import publish_factors, stored_factors
from impart_core.base.settings import build_config
from impart_core.blocks.calibrated import compress_layer, run_layer
from impart_core.blocks.coding import calibration_of
from impart_core.blocks.decompose import decompose_block
from impart_core.blocks.encode import compress_block
from impart_core.blocks.rebuild import rebuild_tensor
from impart_core.blocks.request import CompressConfig
from impart_core.calibrate.distil import DistilOptions, distil_scales
from impart_core.calibrate.layer import Batch
from impart_core.calibrate.model import CausalModel
from impart_core.checkpoint.digest import tensor_digests
from impart_core.checkpoint.index import Checkpoint, open_checkpoint
from impart_core.checkpoint.pairing import Pairs
from impart_core.codec.format import CODES_FILE, BlockFile
from impart_core.engine.plan import check_request
from impart_core.methods import METHODS
from impart_core.store.manifest import Manifest
from impart_core.store.provenance import Stopwatch
from impart_core.store.store import Store
from impart_flows.jobs import plan_jobs
from impart_tasks.references import Trust

CPU = torch.device("cpu")
BATCH = 32  # sequences run together


def config_of(cr: float = 4.0, **settings: Any) -> CompressConfig:
    """Return a compression's settings; options are given as `options={...}`."""
    return build_config(CompressConfig, cr=cr, **settings)


def small_options(method: str) -> dict[str, Any]:
    """Return options with which a method takes tiny models: default ladders ask for more vectors than these have."""
    ladders = "ladder" in METHODS.get(method).options_model.model_fields
    return {"ladder": "8x2,3x8,2"} if ladders else {}


def compress(
    store: Store,
    base_folder: Path,
    finetuned_folder: Path,
    config: CompressConfig,
    *,
    keep_factors: bool = False,
    tokens: torch.Tensor | None = None,
) -> Delta:
    """Compress and publish every block one after the other, gather them, and open the delta.

    With calibration tokens, (sequences, length), layers are compressed on what the ones before them give.
    """
    base, finetuned = open_checkpoint(base_folder), open_checkpoint(finetuned_folder)
    digests = tensor_digests(base), tensor_digests(finetuned)
    work = check_request(base, finetuned, config)
    needed = calibration_of(config)
    text = calibration_recipe(tokens).id if tokens is not None else None
    planned = plan_jobs(config, work, finetuned, digests, text, _places(store, base_folder, finetuned_folder))
    scales = _distilled(base, finetuned, work.pairs, config, tokens) if needed == "logits" else None
    model = CausalModel.of(finetuned, CPU) if planned.layers else None
    weights: dict[str, torch.Tensor] = {}
    batches: list[torch.Tensor] = []
    for number, job in enumerate(planned.jobs):
        if job.factors and keep_factors:
            made = decompose_block(work.pairs, job.block, config, digests=digests)
            publish_factors(store, job.factors, job.block.name, made, Stopwatch())
        with stored_factors(store, job.factors.id if job.factors else None) as stored:
            if model is not None and number in planned.layers:
                assert tokens is not None
                batches = batches or [model.embed(weights, part) for part in torch.split(tokens, BATCH)]
                given = [Batch.of(batch) for batch in batches]
                tensors = compress_layer(work.pairs, job.block, config, model, given, stored=stored, device=CPU)
            else:
                tensors = compress_block(work.pairs, job.block, config, stored=stored, scales=scales, digests=digests)
        published = publish_block(store, job.recipe, job.block.name, tensors, Stopwatch())
        if model is not None:
            own = _rebuilt(store, published, base)
            weights |= own
            if number in planned.layers:
                run_layer(model, job.block.name, own, given, batches.__setitem__)
    ids = [planned.jobs[number].recipe.id for number in planned.order]
    recipe = delta_recipe(base, finetuned, config, digests, text)
    made = publish_delta(store, recipe, finetuned, ids, Stopwatch())
    opened = open_delta(store, made.manifest.id)
    assert opened == made
    return opened


def _places(store: Store, base: Path, finetuned: Path) -> dict[str, Any]:
    return {"base": str(base), "finetuned": str(finetuned), "store": store.url, "device": "cpu", "trust": Trust()}


def _rebuilt(store: Store, block: Manifest, base: Checkpoint) -> dict[str, torch.Tensor]:
    with store.local_file(block, CODES_FILE) as path:
        file = BlockFile(path)
        return {name: rebuild_tensor(name, base, header, file) for name, header in file.headers.items()}


def _distilled(
    base: Checkpoint, finetuned: Checkpoint, pairs: Pairs, config: CompressConfig, tokens: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    assert tokens is not None
    return distil_scales(base, finetuned, pairs, config, tokens, options=DistilOptions(), device=CPU)


def stored_path(delta: Delta, number: int = 0) -> Path:
    """Return where the codes of one block of a delta in a folder store lie."""
    block = delta.blocks[number]
    return Path(delta.store.url) / "artifacts" / block.id / block.files[0].path


def flip(path: Path, position: int) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
