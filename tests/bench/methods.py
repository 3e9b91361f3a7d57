"""`make methods`: every method at every ratio on the three fine-tunes of the tiny zoo, over several seeds of the masks.

Writes a JSON file and prints Markdown tables of answer loss and exact match on the test split, mean ± standard error
over seeds: one of methods at 16 bits and one of those that quantise; methods without masks have one result, whose error
is that over the items. Where a row has several settings, the one with the least answer loss on the validation split is
taken, for each task and ratio by itself as in the paper; a third table says which, and a fourth what ImPart-Qt and
Delta-CoMe lose on that split with the same ladder. Methods that need calibration text
get the train split of the task, 128 sequences of 256 characters.
"""

import argparse
import json
import os
import re
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from impart_core import tinyzoo
from impart_core.apply.dense import reconstruct
from impart_core.base.errors import InfeasibleBudgetError
from impart_core.blocks.coding import calibration_of
from impart_core.calibrate.text import CalibrationText, read_tokens
from impart_core.checkpoint.index import open_checkpoint
from impart_core.evaluation.harness import Evaluator
from impart_core.evaluation.result import Split
from impart_core.store.store import Store
from tests.bench.arguments import at_least_one, read_figures, require_place, write_figures
from tests.impart_core.pipeline import compress, config_of

Options = dict[str, Any]
Measured = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Row:
    """A row of a table: a method, and the settings of which one is picked for each task and ratio."""

    method: str
    settings: tuple[Options, ...] = ({},)


def _grid(**values: Sequence[Any]) -> tuple[Options, ...]:
    return tuple(dict(zip(values, chosen, strict=True)) for chosen in product(*values.values()))


SPARSE = {name: Row(name) for name in ("dare", "impart", "lowrank", "magnitude")}
_LADDERS, _SIZES = ("8x2,3x32,2", "3x8,2", "2"), (128, 512)
QUANTIZED = {
    "bitdelta": Row("bitdelta", _grid(per_row=(False, True))),
    "bitdelta, distilled": Row("bitdelta", _grid(distil=(True,), per_row=(False, True))),
    "dare-qt": Row("dare-qt", _grid(bits=(2, 4), group_size=_SIZES)),
    "delta-come": Row("delta-come", _grid(ladder=_LADDERS, group_size=_SIZES)),
    "impart-qt": Row("impart-qt", _grid(ladder=_LADDERS, c=(0.1, 0.25, 0.5), group_size=_SIZES)),
}
ROWS = SPARSE | QUANTIZED
TABLES = ((SPARSE, (4.0, 8.0, 16.0, 32.0, 64.0)), (QUANTIZED, (16.0, 32.0, 64.0, 128.0)))
SEEDS = range(5)
MASKED = ("impart", "dare", "bitdelta", "dare-qt", "impart-qt")
METRICS = ("answer_loss", "exact_match")


@dataclass(frozen=True)
class Cell:
    """One model to make: a row at a ratio on a task."""

    row: str
    cr: float
    task: str

    @property
    def key(self) -> str:
        """The cell in the output file."""
        return f"{self.row} {self.cr:g} {self.task}"

    @property
    def seeds(self) -> Sequence[int]:
        """The seeds of its masks; of a method without masks one."""
        method = ROWS[self.row].method
        return SEEDS if method in MASKED else (0,)


@dataclass(frozen=True)
class Run:
    """One measurement."""

    cell: Cell
    options: Options
    seed: int
    split: Split

    @property
    def key(self) -> str:
        """The run in the output file."""
        return f"{self.cell.key} {self.split} {self.seed} {json.dumps(self.options)}"


def main() -> None:
    """Measure what is not yet in the output file, saving after each result, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("methods.json"), help="where the results go")
    parser.add_argument("--limit", type=at_least_one, help="only this many items of each task")
    parser.add_argument("--only", default="", help="only cells whose key, 'row ratio task', holds this pattern")
    parser.add_argument("--jobs", type=at_least_one, default=os.cpu_count(), help="how many to measure at once")
    arguments = parser.parse_args()
    require_place(parser, arguments.out)
    found = read_figures(parser, arguments.out)
    cells = [cell for cell in _cells() if re.search(arguments.only, cell.key)]
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
        for runs in (_validations(cells), _tests(cells, found)):  # the second once the first is there
            missing = [run for run in runs if run.key not in found]
            asked = {pool.submit(_measure, run, arguments.limit): run for run in missing}
            for future in as_completed(asked):
                found[asked[future].key] = future.result()
                write_figures(arguments.out, found)
    for rows, ratios in TABLES:
        print(_table(found, rows, ratios), end="\n\n")
    print(_picks(found), end="\n\n")
    print(_same_ladder(found))


def _cells() -> Iterator[Cell]:
    for rows, ratios in TABLES:
        for row, cr, task in product(rows, ratios, tinyzoo.FINE_TUNES):
            yield Cell(row, cr, task)


def _validations(cells: Iterable[Cell]) -> Iterator[Run]:
    """Yield what has to be known to pick settings."""
    for cell in cells:
        settings = ROWS[cell.row].settings
        for options in settings if len(settings) > 1 else ():
            yield Run(cell, options, 0, "validation")


def _tests(cells: Iterable[Cell], found: Mapping[str, Any]) -> Iterator[Run]:
    """Yield the runs with the settings that are picked."""
    for cell in cells:
        options = _picked(cell, found)
        for seed in cell.seeds if options is not None else ():
            yield Run(cell, options or {}, seed, "test")


def _picked(cell: Cell, found: Mapping[str, Any]) -> Options | None:
    """Return the settings with the least loss on the validation split; None where none is possible, or known."""
    settings = ROWS[cell.row].settings
    if len(settings) == 1:
        return settings[0]
    measured = ((found.get(Run(cell, options, 0, "validation").key), options) for options in settings)
    losses = [
        (result["answer_loss"][0], number, options) for number, (result, options) in enumerate(measured) if result
    ]
    return min(losses)[2] if losses else None


def _measure(run: Run, limit: int | None) -> Measured | None:
    """Compress, rebuild and evaluate one model; None where the ratio is impossible."""
    torch.set_num_threads(1)
    base, finetuned = tinyzoo.path("base"), tinyzoo.path(run.cell.task)
    config = config_of(run.cell.cr, method=ROWS[run.cell.row].method, seed=run.seed, options=run.options)
    text = CalibrationText(source=f"tinyzoo:{run.cell.task}")
    needed = calibration_of(config) != "none"
    tokens = read_tokens(text, open_checkpoint(finetuned)) if needed else None
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        try:
            delta = compress(Store(scratch / "store"), base, finetuned, config, tokens=tokens)
        except InfeasibleBudgetError:
            return None
        assert delta.manifest.content.cr_projection >= run.cell.cr
        reconstruct(delta, open_checkpoint(base), scratch / "model")
        task = f"tinyzoo_{run.cell.task}"
        metrics = Evaluator(scratch / "model").measure([task], split=run.split, limit=limit).tasks[task].metrics
    return {name: (metrics[name].value, metrics[name].stderr or 0.0) for name in METRICS}


def _table(found: Mapping[str, Any], rows: Iterable[str], ratios: Sequence[float]) -> str:
    return _lines(rows, ratios, lambda cell: _cell(cell, found))


def _picks(found: Mapping[str, Any]) -> str:
    """Return the table of the settings that were picked, where there was a choice."""
    rows = [name for name, row in QUANTIZED.items() if len(row.settings) > 1]

    def shown(cell: Cell) -> str:
        options = _picked(cell, found)
        return ", ".join(f"{key} {value}" for key, value in options.items()) if options else "—"

    return _lines(rows, TABLES[1][1], shown)


def _same_ladder(found: Mapping[str, Any]) -> str:
    """Return the table of answer losses on the validation split by ladder, of what is picked of all else."""
    lines = [
        "| task | ladder | " + " | ".join(f"CR {cr:g}: impart-qt, delta-come" for cr in TABLES[1][1]) + " |",
        "|---|---|" + "--:|" * len(TABLES[1][1]),
    ]
    for task, ladder in product(tinyzoo.FINE_TUNES, _LADDERS):
        cells = []
        for cr in TABLES[1][1]:
            losses = [_least(Cell(row, cr, task), ladder, found) for row in ("impart-qt", "delta-come")]
            cells.append(", ".join("—" if loss is None else f"{loss:.4f}" for loss in losses))
        lines.append(f"| {task} | {ladder} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _least(cell: Cell, ladder: str, found: Mapping[str, Any]) -> float | None:
    """Return the least loss on the validation split of the settings with a ladder."""
    runs = (Run(cell, options, 0, "validation") for options in ROWS[cell.row].settings if options["ladder"] == ladder)
    losses = [result["answer_loss"][0] for run in runs if (result := found.get(run.key))]
    return min(losses, default=None)


def _lines(rows: Iterable[str], ratios: Sequence[float], show: Any) -> str:
    lines = [
        "| task | method | " + " | ".join(f"CR {cr:g}" for cr in ratios) + " |",
        "|---|---|" + "--:|" * len(ratios),
    ]
    for task, row in product(tinyzoo.FINE_TUNES, rows):
        lines.append(f"| {task} | {row} | " + " | ".join(show(Cell(row, cr, task)) for cr in ratios) + " |")
    return "\n".join(lines)


def _cell(cell: Cell, found: Mapping[str, Any]) -> str:
    """Return answer loss and exact match of the runs at hand, as "0.123 ± 0.004; 45.6 ± 0.7 %"."""
    runs = [found.get(run.key) for run in _tests([cell], found)]
    there = [run for run in runs if run]
    if not there:
        return "not possible"
    loss, match = (_mean_and_error([run[name] for run in there]) for name in METRICS)
    return f"{loss[0]:.4f} ± {loss[1]:.4f}; {100 * match[0]:.1f} ± {100 * match[1]:.1f} %"


def _mean_and_error(values: list[tuple[float, float]]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0]
    numbers = [value for value, _ in values]
    return statistics.mean(numbers), statistics.stdev(numbers) / len(numbers) ** 0.5


if __name__ == "__main__":
    main()
