"""A whole compression with the library alone, for tests of what comes out of it."""

from pathlib import Path
from typing import Any

from impart_core.artifacts.delta import Delta, block_recipe, delta_recipe, open_delta, publish_block, publish_delta
from impart_core.artifacts.factors import factors_recipe, publish_factors, stored_factors
from impart_core.artifacts.provenance import Stopwatch
from impart_core.artifacts.store import Store
from impart_core.checkpoint.digest import tensor_digests
from impart_core.checkpoint.index import open_checkpoint
from impart_core.compress import compress_block
from impart_core.config import CompressConfig, build_config
from impart_core.decompose import decompose_block
from impart_core.plan import check_request
from impart_core.sparsify import SPARSIFIERS


def config_of(cr: float = 4.0, **settings: Any) -> CompressConfig:
    """Return a compression's settings; options are given as `options={...}`."""
    return build_config(CompressConfig, cr=cr, **settings)


def small_options(method: str) -> dict[str, Any]:
    """Return options with which a method takes tiny models: default ladders ask for more vectors than these have."""
    ladders = "ladder" in SPARSIFIERS.get(method).options_model.model_fields
    return {"ladder": "8x2,3x8,2"} if ladders else {}


def compress(
    store: Store, base_folder: Path, finetuned_folder: Path, config: CompressConfig, *, keep_factors: bool = False
) -> Delta:
    """Compress and publish every block one after the other, gather them, and open the delta."""
    base, finetuned = open_checkpoint(base_folder), open_checkpoint(finetuned_folder)
    digests = tensor_digests(base), tensor_digests(finetuned)
    work = check_request(base, finetuned, config)
    ids = []
    for block in work.blocks:
        factors = factors_recipe(work.pairs, block, config, digests)
        if factors and keep_factors:
            made = decompose_block(work.pairs, block, config, digests=digests)
            publish_factors(store, factors, block.name, made, Stopwatch())
        recipe = block_recipe(work.pairs, block, config, digests, factors)
        with stored_factors(store, factors.id if factors else None) as stored:
            tensors = compress_block(work.pairs, block, config, stored=stored, digests=digests)
        ids.append(publish_block(store, recipe, block.name, tensors, Stopwatch()).id)
    recipe = delta_recipe(base, finetuned, config, digests)
    made = publish_delta(store, recipe, finetuned, ids, Stopwatch())
    opened = open_delta(store, made.manifest.id)
    assert opened == made
    return opened


def stored_path(delta: Delta, number: int = 0) -> Path:
    """Return where the codes of one block of a delta in a folder store lie."""
    block = delta.blocks[number]
    return Path(delta.store.url) / "artifacts" / block.id / block.files[0].path


def flip(path: Path, position: int) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
