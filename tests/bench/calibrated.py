"""A layer of Llama shapes through ImPart-Qt, calibration included: seconds, memory, and what a second worker saves."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from impart_core import tinyzoo
from impart_core.checkpoint.digest import tensor_digests
from impart_core.checkpoint.index import CONFIG, open_checkpoint
from tests.bench.pipeline import LAYER_BYTES, WORKERS, flow_of
from tests.bench.synthetic import SIZES, save_pairs

CR = 64
TEXT = {"source": "tinyzoo:math", "sequences": 16, "length": 512}
HEADS = {"num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 64}


def measure_calibrated() -> dict[str, Any]:
    """Compress a model of one layer by one worker and by two, in new stores, and return ratios.

    `calibrated_speedup`: wall time by one worker over that by two. `calibrated_seconds`: by two.
    `calibrated_rss_over_block`: peak, libraries included, over the float32 bytes of the layer, by two.
    """
    with tempfile.TemporaryDirectory() as scratch:
        (pair,) = save_pairs(Path(scratch), (1,)).values()
        for folder in pair:
            _complete(folder)
            tensor_digests(open_checkpoint(folder))
        config = {"method": "impart-qt", "cr": CR}
        alone, shared = (flow_of(pair, scratch, workers, config, calibration=TEXT) for workers in (1, WORKERS))
    assert alone["artifact"] == shared["artifact"]
    return {
        "calibrated_speedup": alone["wall_seconds"] / shared["wall_seconds"],
        "calibrated_seconds": shared["wall_seconds"],
        "calibrated_rss_over_block": shared["peak_rss_bytes"] / LAYER_BYTES,
    }


def _complete(folder: Path) -> None:
    """Give a synthetic checkpoint the tokenizer of the tiny zoo, and a configuration that it can be run by."""
    zoo = tinyzoo.path("base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(zoo / name, folder / name)
    sizes = {"hidden_size": SIZES["hidden"], "intermediate_size": SIZES["intermediate"], "vocab_size": SIZES["vocab"]}
    described = json.loads((zoo / CONFIG).read_text()) | sizes | HEADS
    described |= {"num_hidden_layers": 1, "max_position_embeddings": TEXT["length"]}
    (folder / CONFIG).write_text(json.dumps(described))
