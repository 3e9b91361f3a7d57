"""`make bench`: runs every benchmark, prints the figures beside their targets, and writes them to one JSON file."""

import argparse
import json
from pathlib import Path
from typing import Any

from tests.bench.calibrated import measure_calibrated
from tests.bench.codec import measure_codec
from tests.bench.decomposition import measure_decomposition
from tests.bench.entropy import measure_entropy
from tests.bench.lossless import measure_lossless
from tests.bench.merge import measure_against_mergekit, measure_merge
from tests.bench.pipeline import measure_pipeline
from tests.bench.quantize import measure_quantize
from tests.bench.runners import measure_runners
from tests.bench.search import measure_search
from tests.bench.shared_masks import measure_shared_masks
from tests.bench.store import measure_store

BENCHMARKS = {
    "decomposition": measure_decomposition,
    "codec": measure_codec,
    "entropy": measure_entropy,
    "lossless": measure_lossless,
    "quantize": measure_quantize,
    "shared_masks": measure_shared_masks,
    "calibrated": measure_calibrated,
    "merge": measure_merge,
    "mergekit": measure_against_mergekit,
    "pipeline": measure_pipeline,
    "store": measure_store,
    "search": measure_search,
    "runners": measure_runners,
}
TARGETS = {
    "svd_speedup": "≥ 5",
    "pipeline_overhead": "≤ 1.15",
    "rss_over_block": "≤ 4",
    "bytes_over_nominal": "≤ 1.02 for impart, dare and lowrank",
    "decode_over_product": "≥ 0.5",
    "ecsq_decode_mbps_64": "≥ 50",
    "ecsq_decode_mbps_256": "≥ 50",
    "lossless_gbps": "≥ 0.3 each way of ours",
    "gptq_speedup": "≥ 3",
    "gptq_over_rtn": "< 1 on every vector",
    "support_over_rtn": "< 1 on every vector",
    "scaling_deviation": "≤ 0.1",
    "ls_seconds": "≤ 10",
    "lineage_seconds": "≤ 10",
    "gc_seconds": "≤ 20",
    "merge_overhead_task_arithmetic": "≤ 1.3",
    "merge_overhead_ties": "≤ 1.3",
    "merge_rss_task_arithmetic": "≤ 6 tensors",
    "merge_rss_ties": "≤ 6 tensors",
    "merge_seconds_over_mergekit_task_arithmetic": "≤ 1",
    "merge_seconds_over_mergekit_ties": "≤ 0.5",
    "merge_rss_over_mergekit_ties": "≤ 0.5",
    "requests_deviation": "≤ 0.02",
    "search_overhead_tpe": "≤ 0.05",
    "search_overhead_gp": "≤ 0.05",
    "peak_8_over_2_blocks": "≤ 1.2",
}


def main() -> None:
    """Run the benchmarks, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], help="which benchmarks; all when left out")
    parser.add_argument("--out", type=Path, default=Path("bench.json"), help="where the figures go")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    for name in arguments.names or BENCHMARKS:
        figures |= BENCHMARKS[name]()
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n")
    for name, value in figures.items():
        shown = f"{value:.4g}" if isinstance(value, float) else json.dumps(value)
        target = f"   target {TARGETS[name]}" if name in TARGETS else ""
        print(f"{name:28} {shown}{target}")


main()
