"""`make pruning`: the answer loss of ImPart by ratio and settings on the three fine-tunes of the tiny zoo.

This is what the defaults of β and of the floor are chosen by, and with `--method ecsq` how its bytes are shared out
and by which metric.
Settings are compared on equal seeds of the masks; everything but the projections stays fine-tuned, and nothing is
generated, which makes it some twenty times as fast as `make methods`. Prints a Markdown table, mean ± standard error
over seeds, and what each setting loses less or more than the first; with one seed errors are over items.

Where few directions are kept, the loss jumps with the ratio: `--near` measures some ratios around each, within a tenth,
and takes them as seeds are taken.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from impart_core import tinyzoo
from impart_core.calibrate.text import CalibrationText
from impart_core.evaluation.result import Split
from tests.answers import FineTune
from tests.bench.arguments import at_least_one, item_count, json_object, ratio, require_place, write_figures
from tests.bench.distil import source_of

Losses = dict[str, list[float]]  # by setting and ratio, one for each run, or of one run for each item
RATIOS = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


def main() -> None:
    """Measure every setting at every ratio on every task, write the losses to a file, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("pruning.json"), help="where every seed's loss goes")
    parser.add_argument("--split", choices=("validation", "test"), default="validation", help="which items")
    parser.add_argument("--items", type=item_count, default=300, help="how many items of each task")
    parser.add_argument("--seeds", type=at_least_one, default=5, help="how many seeds of the masks")
    parser.add_argument("--ratios", type=ratio, nargs="*", default=RATIOS, help="which ratios")
    parser.add_argument("--near", type=at_least_one, default=1, help="ratios around each, itself among them")
    parser.add_argument("--zoo", choices=tinyzoo.ZOOS, default="first", help="whose fine-tunes")
    parser.add_argument("--jobs", type=at_least_one, default=2, help="how many tasks to measure at once")
    parser.add_argument(
        "--settings",
        type=json_object,
        nargs="*",
        default=["{}", '{"beta": 0.6}'],
        help="options of the method, each a JSON object",
    )
    parser.add_argument("--method", default="impart", help="whose options they are")
    parser.add_argument("--tasks", nargs="*", choices=tinyzoo.FINE_TUNES, help="which; all of the zoo's")
    parser.add_argument(
        "--text", choices=("own", "other", "none"), default="own", help="calibration text, as in tests.bench.distil"
    )
    parser.add_argument("--sequences", type=at_least_one, default=128, help="of calibration text")
    asked = parser.parse_args()
    require_place(parser, asked.out)
    known = tinyzoo.fine_tunes(asked.zoo)
    tasks = known if asked.tasks is None else asked.tasks
    if strange := [task for task in tasks if task not in known]:
        parser.error(f"The {asked.zoo} zoo has no {', '.join(strange)}. It has {', '.join(known)}.")
    text = asked.text, asked.sequences
    runs = list(product(_near(asked.near), range(asked.seeds)))
    work = (asked.zoo, asked.method, asked.settings, asked.ratios, runs, (asked.split, asked.items), text)
    with ProcessPoolExecutor(asked.jobs, get_context("spawn")) as pool:
        waiting = {task: pool.submit(_measure, task, *work) for task in tasks}
        found = {task: future.result() for task, future in waiting.items()}
    write_figures(asked.out, found)
    print(_table(found, asked.settings, asked.ratios))


def _near(count: int) -> list[float]:
    """Return factors of a ratio, evenly spread over a tenth below and above; 1 alone where there is but one."""
    return [1.0] if count == 1 else [0.9 + 0.2 * number / (count - 1) for number in range(count)]


def _measure(
    task: str,
    zoo: str,
    method: str,
    settings: Sequence[str],
    ratios: Sequence[float],
    runs: Sequence[tuple[float, int]],
    measured: tuple[Split, int],
    text: tuple[str, int],
) -> Losses:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        own = CalibrationText(source=source_of(task, text[0], Path(scratch)), sequences=text[1])
        model = FineTune(task, zoo, text=own)
        return _losses(model, method, settings, ratios, runs, measured)


def _losses(
    model: FineTune,
    method: str,
    settings: Sequence[str],
    ratios: Sequence[float],
    runs: Sequence[tuple[float, int]],
    measured: tuple[Split, int],
) -> Losses:
    found: Losses = {}
    for options, cr in product(settings, ratios):
        each = [
            model.compressed(near * cr, method, seed, **json.loads(options)).answer_losses(*measured)
            for near, seed in runs
        ]
        found[_key(options, cr)] = each[0] if len(each) == 1 else [statistics.mean(losses) for losses in each]
    return found


def _table(found: Mapping[str, Losses], settings: Sequence[str], ratios: Sequence[float]) -> str:
    """Return the losses, and behind a semicolon by how much they are above the first setting's, seed by seed."""
    lines = [
        "| task | settings | " + " | ".join(f"CR {cr:g}" for cr in ratios) + " |",
        "|---|---|" + "--:|" * len(ratios),
    ]
    for (task, losses), options in product(found.items(), settings):
        cells = []
        for cr in ratios:
            own, first = losses[_key(options, cr)], losses[_key(settings[0], cr)]
            above = _mean_and_error([mine - other for mine, other in zip(own, first, strict=True)], "+")
            cells.append(_mean_and_error(own) + ("" if options == settings[0] else f"; {above}"))
        lines.append(f"| {task} | {options} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _mean_and_error(values: Sequence[float], sign: str = "") -> str:
    error: Any = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{statistics.mean(values):{sign}.3f} ± {error:.3f}"


def _key(options: str, cr: float) -> str:
    return f"{options} {cr:g}"


if __name__ == "__main__":
    main()
