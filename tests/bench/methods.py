"""`make methods`: every method at every ratio on the three fine-tunes of the tiny zoo, over several seeds of the masks.

Writes a JSON file and prints a Markdown table of answer loss and exact match, mean ± standard error over seeds;
methods without masks have one result, whose error is that over the items.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from impart_core import tinyzoo
from impart_core.apply.dense import reconstruct
from impart_core.artifacts.store import Store
from impart_core.checkpoint.index import open_checkpoint
from impart_core.errors import InfeasibleBudgetError
from impart_core.evaluate import evaluate
from impart_core.sparsify import SPARSIFIERS
from tests.impart_core.pipeline import compress, config_of

RATIOS = (4.0, 8.0, 16.0, 32.0, 64.0)
SEEDS = range(5)
MASKED = ("impart", "dare", "bitdelta")
METRICS = ("answer_loss", "exact_match")
Measured = dict[str, tuple[float, float]]


def main() -> None:
    """Measure what is not yet in the output file, saving after each result, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("methods.json"), help="where the results go")
    parser.add_argument("--limit", type=int, help="only this many items of each task")
    arguments = parser.parse_args()
    found: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        for method, cr, task, seed in _runs():
            key = f"{method} {cr:g} {task} {seed}"
            if key not in found:
                found[key] = _measure(Path(scratch), method, cr, task, seed, arguments.limit)
                arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    print(_table(found))


def _runs() -> Iterator[tuple[str, float, str, int]]:
    for method in SPARSIFIERS:
        for cr in RATIOS:
            for task in tinyzoo.FINE_TUNES:
                for seed in SEEDS if method in MASKED else (0,):
                    yield method, cr, task, seed


def _measure(scratch: Path, method: str, cr: float, task: str, seed: int, limit: int | None) -> Measured | None:
    """Compress, rebuild and evaluate one model; None where the ratio is impossible."""
    base = tinyzoo.path("base")
    config = config_of(cr, method=method, seed=seed)
    try:
        delta = compress(Store(scratch / "store"), base, tinyzoo.path(task), config, keep_factors=True)
    except InfeasibleBudgetError:
        return None
    reconstruct(delta, open_checkpoint(base), scratch / "model", overwrite=True)
    metrics = evaluate(scratch / "model", [f"tinyzoo_{task}"], limit=limit).tasks[f"tinyzoo_{task}"].metrics
    return {name: (metrics[name].value, metrics[name].stderr or 0.0) for name in METRICS}


def _table(found: dict[str, Any]) -> str:
    lines = [
        "| task | method | " + " | ".join(f"CR {cr:g}" for cr in RATIOS) + " |",
        "|---|---|" + "--:|" * len(RATIOS),
    ]
    for task in tinyzoo.FINE_TUNES:
        for method in SPARSIFIERS:
            cells = [_cell([found.get(f"{method} {cr:g} {task} {seed}") for seed in SEEDS]) for cr in RATIOS]
            lines.append(f"| {task} | {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(runs: list[Measured | None]) -> str:
    """Return answer loss and exact match of the runs at hand, as "0.123 ± 0.004; 45.6 ± 0.7 %"."""
    there = [run for run in runs if run]
    if not there:
        return "not possible"
    loss, match = (_mean_and_error([run[name] for run in there]) for name in METRICS)
    return f"{loss[0]:.3f} ± {loss[1]:.3f}; {100 * match[0]:.1f} ± {100 * match[1]:.1f} %"


def _mean_and_error(values: list[tuple[float, float]]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0]
    numbers = [value for value, _ in values]
    return statistics.mean(numbers), statistics.stdev(numbers) / len(numbers) ** 0.5


if __name__ == "__main__":
    main()
