"""`make methods`: every method at every ratio on the three fine-tunes of the tiny zoo, over several seeds of the masks.

Writes a JSON file and prints two Markdown tables of answer loss and exact match, mean ± standard error over seeds, one
of methods at 16 bits and one of those that quantise; methods without masks have one result, whose error is that over
the items. Those that need calibration text get the train split of the task, 128 sequences of 256 characters.
"""

import argparse
import json
import re
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from impart_core import tinyzoo
from impart_core.apply.dense import reconstruct
from impart_core.artifacts.store import Store
from impart_core.calibrate.text import CalibrationText, read_tokens
from impart_core.checkpoint.index import open_checkpoint
from impart_core.errors import InfeasibleBudgetError
from impart_core.evaluate import evaluate
from impart_core.policy import calibration_of
from tests.impart_core.pipeline import compress, config_of

# Each row of a table: what it is called, its method and options.
SPARSE = {name: (name, {}) for name in ("dare", "impart", "lowrank", "magnitude")}
QUANTIZED: dict[str, tuple[str, dict[str, Any]]] = {
    "bitdelta": ("bitdelta", {}),
    "bitdelta, a scale a row": ("bitdelta", {"per_row": True}),
    "bitdelta, distilled": ("bitdelta", {"distil": True}),
    "dare-qt, 2 bits": ("dare-qt", {"bits": 2}),
    "dare-qt, 4 bits": ("dare-qt", {"bits": 4}),
    "dare-qt, 8 bits": ("dare-qt", {"bits": 8}),
    "delta-come": ("delta-come", {}),
    "delta-come, 3x8,2": ("delta-come", {"ladder": "3x8,2"}),
    "impart-qt": ("impart-qt", {}),
    "impart-qt, 3x8,2": ("impart-qt", {"ladder": "3x8,2"}),
    "impart-qt, 3x8,2, C 0.1": ("impart-qt", {"ladder": "3x8,2", "c": 0.1}),
}
TABLES = ((SPARSE, (4.0, 8.0, 16.0, 32.0, 64.0)), (QUANTIZED, (16.0, 32.0, 64.0, 128.0)))
SEEDS = range(5)
MASKED = ("impart", "dare", "bitdelta", "dare-qt", "impart-qt")
METRICS = ("answer_loss", "exact_match")
Measured = dict[str, tuple[float, float]]


def main() -> None:
    """Measure what is not yet in the output file, saving after each result, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("methods.json"), help="where the results go")
    parser.add_argument("--limit", type=int, help="only this many items of each task")
    parser.add_argument("--only", default="", help="only runs whose key, 'row ratio task seed', holds this pattern")
    arguments = parser.parse_args()
    found: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        for row, cr, task, seed in _runs():
            key = f"{row} {cr:g} {task} {seed}"
            if key not in found and re.search(arguments.only, key):
                found[key] = _measure(Path(scratch), row, cr, task, seed, arguments.limit)
                arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    for rows, ratios in TABLES:
        print(_table(found, rows, ratios))


def _runs() -> Iterator[tuple[str, float, str, int]]:
    for rows, ratios in TABLES:
        for row, (method, _) in rows.items():
            for cr in ratios:
                for task in tinyzoo.FINE_TUNES:
                    for seed in SEEDS if method in MASKED else (0,):
                        yield row, cr, task, seed


def _measure(scratch: Path, row: str, cr: float, task: str, seed: int, limit: int | None) -> Measured | None:
    """Compress, rebuild and evaluate one model; None where the ratio is impossible."""
    base = tinyzoo.path("base")
    method, options = (SPARSE | QUANTIZED)[row]
    config = config_of(cr, method=method, seed=seed, options=options)
    text = CalibrationText(source=f"tinyzoo:{task}")
    needed = calibration_of(config) != "none"
    tokens = read_tokens(text, open_checkpoint(tinyzoo.path(task))) if needed else None
    try:
        store = Store(scratch / "store")
        delta = compress(store, base, tinyzoo.path(task), config, keep_factors=True, tokens=tokens)
    except InfeasibleBudgetError:
        return None
    reconstruct(delta, open_checkpoint(base), scratch / "model", overwrite=True)
    metrics = evaluate(scratch / "model", [f"tinyzoo_{task}"], limit=limit).tasks[f"tinyzoo_{task}"].metrics
    return {name: (metrics[name].value, metrics[name].stderr or 0.0) for name in METRICS}


def _table(found: dict[str, Any], rows: Iterable[str], ratios: Sequence[float]) -> str:
    lines = [
        "| task | method | " + " | ".join(f"CR {cr:g}" for cr in ratios) + " |",
        "|---|---|" + "--:|" * len(ratios),
    ]
    for task in tinyzoo.FINE_TUNES:
        for row in rows:
            cells = [_cell([found.get(f"{row} {cr:g} {task} {seed}") for seed in SEEDS]) for cr in ratios]
            lines.append(f"| {task} | {row} | " + " | ".join(cells) + " |")
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
