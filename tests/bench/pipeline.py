"""The whole flow on synthetic Llama shapes and on the tiny zoo: overhead, memory, and time against layers."""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from impart_core import tinyzoo
from impart_core.checkpoint.digest import tensor_digests
from impart_core.checkpoint.index import open_checkpoint
from tests.bench.synthetic import SIZES, projection_shapes, save_pairs
from tests.support import run_json

Run = dict[str, Any]
Runs = dict[int, list[Run]]
LAYERS = (2, 4, 8)
RUNS = 3
WORKERS = 2
DEFAULT: dict[str, float] = {"cr": 32}
LAYER_BYTES = 4 * (sum(m * n for m, n in projection_shapes().values()) + 2 * SIZES["hidden"])  # in float32
QUICK = {**DEFAULT, "factors_for": 32}  # decompositions as shallow as this ratio allows: what is left is overhead


def measure_pipeline() -> dict[str, Any]:
    """Compress models of 2, 4 and 8 layers and return ratios of one run to another.

    `pipeline_overhead`: wall time over busy time, median of a few runs. `rss_over_block`: peak above an idle process
    (one that has compressed the tiny zoo: the same libraries, hardly any data) over the float32 bytes of a layer.
    `scaling`: seconds by layers (medians), and how far the middle one is from the straight line through the others.
    """
    with tempfile.TemporaryDirectory() as scratch:
        pairs = save_pairs(Path(scratch), LAYERS)
        for folder in (folder for pair in pairs.values() for folder in pair):
            tensor_digests(open_checkpoint(folder))  # remembered from here on
        quick = {layers: [flow_of(pairs[layers], scratch, WORKERS, QUICK) for _ in range(RUNS)] for layers in LAYERS}
        whole = {layers: flow_of(pairs[layers], scratch, WORKERS, DEFAULT) for layers in (LAYERS[0], LAYERS[-1])}
        alone = flow_of(pairs[LAYERS[-1]], scratch, 1, DEFAULT)
        planned = run_json("plan", *map(str, pairs[LAYERS[-1]]), "--cr", "32", "--workers", str(WORKERS))["peak_bytes"]
        zoo = [flow_of((tinyzoo.path("base"), tinyzoo.path("math")), scratch, WORKERS, DEFAULT) for _ in range(RUNS)]
    return {
        **_overhead_figures(quick, whole, zoo),
        **_memory_figures(whole, alone, zoo, planned),
        **_scaling_figures(quick),
    }


def _overhead_figures(quick: Runs, whole: dict[int, Run], zoo: list[Run]) -> dict[str, float]:
    return {
        "pipeline_overhead": statistics.median(_overhead(run) for run in quick[LAYERS[-1]]),
        "pipeline_overhead_default_depth": _overhead(whole[LAYERS[-1]]),
        "pipeline_overhead_tinyzoo": statistics.median(_overhead(run) for run in zoo),
    }


def _memory_figures(whole: dict[int, Run], alone: Run, zoo: list[Run], planned: int) -> dict[str, float]:
    few, many = (whole[layers]["peak_rss_bytes"] for layers in (LAYERS[0], LAYERS[-1]))
    idle = min(run["peak_rss_bytes"] for run in zoo)
    return {
        "rss_over_block": (many - idle) / LAYER_BYTES,
        "rss_over_block_one_worker": (alone["peak_rss_bytes"] - idle) / LAYER_BYTES,
        "planned_over_measured": planned / (many - idle),
        "peak_8_over_2_blocks": many / few,
    }


def _scaling_figures(quick: Runs) -> dict[str, Any]:
    seconds = {layers: statistics.median(_walls(found)) for layers, found in quick.items()}
    few, middle, many = LAYERS
    line = seconds[few] + (seconds[many] - seconds[few]) * (middle - few) / (many - few)
    return {
        "scaling": {str(layers): round(value, 2) for layers, value in seconds.items()},
        "scaling_deviation": abs(seconds[middle] / line - 1),
        "scaling_spread": max(max(_walls(found)) / min(_walls(found)) - 1 for found in quick.values()),
    }


def _walls(runs: list[Run]) -> list[float]:
    return [run["wall_seconds"] for run in runs]


def _overhead(run: Run) -> float:
    return float(run["wall_seconds"] / run["busy_seconds"])


def flow_of(pair: tuple[Path, Path], scratch: str, workers: int, config: dict[str, Any], **others: Any) -> Run:
    """Run one compression in a process of its own, into a new store; `others` are further settings of its request."""
    store = tempfile.mkdtemp(dir=scratch)
    request = {"base": str(pair[0]), "finetuned": str(pair[1]), "store": store, "workers": workers, "config": config}
    request |= others
    command = [sys.executable, "-m", "tests.bench.run_flow", json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    shutil.rmtree(store)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: Run = json.loads(done.stdout)
    return found
