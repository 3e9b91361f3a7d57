"""The tiny zoo's three fine-tunes merged into one: the paper's grid, chosen on validation items, scored on test items.

For Task Arithmetic and TIES: λ (and the retain ratio) without a sparsifier first; then, with these fixed, DARE and
ImPart at the paper's sparsities, one search a seed. TIES by samplers that may try half of the grid's candidates, too,
and every other method by TPE. `python -m tests.bench.merged_zoo --out merged.json`; `--store` keeps what was tried.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import impart_core as impart
from impart_core import tinyzoo
from impart_core.searching.file import parse_search

TASKS = tuple(f"tinyzoo_{name}" for name in tinyzoo.FINE_TUNES)
SCALES, RETAINED = (0.4, 0.6, 0.8, 1.0, 1.2), (0.4, 0.6, 0.8)
SPARSITIES = (0.1, 0.3, 0.5, 0.7, 0.9)
SPARSIFIERS = ("dare", "impart")
# What each other method is searched over; all have the base and the three fine-tunes.
SCALE, DENSITY = {"range": [0.2, 2.0]}, {"range": [0.1, 0.9]}
OTHERS: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"lambda": SCALE},
    "ties": {"lambda": SCALE, "density": DENSITY},
    "dare_linear": {"lambda": SCALE, "density": DENSITY},
    "dare_ties": {"lambda": SCALE, "density": DENSITY},
    "della": {"lambda": SCALE, "density": DENSITY, "epsilon": 0.05},
    "breadcrumbs": {"lambda": SCALE, "density": DENSITY},
    "sce": {"select_topk": DENSITY},
    "tsv_merge": {"lambda": SCALE},
    "iso_c": {"lambda": SCALE},
    "ramplus_tl": {"r": {"range": [0.0, 1.0]}},
}
Found = dict[str, Any]


def template_of(method: str, scale: Any, density: Any = None) -> dict[str, Any]:
    """Return a merge of the three fine-tunes with the base; numbers may be holes."""
    parameters = {"weight": 1.0, "lambda": scale, **({"density": density} if density is not None else {})}
    return {
        "merge_method": method,
        "base_model": str(tinyzoo.path("base")),
        "models": [{"model": str(tinyzoo.path(name))} for name in tinyzoo.FINE_TUNES],
        "parameters": parameters,
    }


def best_of(template: dict[str, Any], items: int, store: str, **settings: Any) -> dict[str, Any]:
    """Search a template's grid on validation items; return the merge that loses least on the right answers.

    Args:
        template: the merge, with holes.
        items: validation items of each task.
        store: where trials are kept.
        settings: of the search file, such as another sampler.
    """
    content = {
        "merge": template,
        "tasks": list(TASKS),
        "objectives": ["answer_loss"],
        "sampler": "grid",
        "starts": [],
        "items": [items],
        "parallel": 2,
        **settings,
    }
    report = impart.search(content, store=store)
    winner = report.record.study.winner
    assert winner is not None
    filled: dict[str, Any] = dict(parse_search(content).space.fill(winner.values).filled["merge"])
    return filled


def on_test(file: Mapping[str, Any], items: int, store: str) -> Found:
    """Return exact match and answer loss of a merge on the test split, by task."""
    with tempfile.TemporaryDirectory() as scratch:
        impart.merge(file, out=Path(scratch) / "merged", store=store)
        measured = impart.evaluate(Path(scratch) / "merged", list(TASKS), limit=items, store=store)
    return {task: {name: value for name, (value, _) in one.metrics[task].items()} for task, one in measured.items()}


def summed_up(runs: list[Found]) -> Found:
    """Return means over runs, and their standard errors, by task and over all tasks."""

    def told(values: list[float]) -> list[float]:
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
        return [round(statistics.mean(values), 4), round(error, 4)]

    metrics = ("exact_match", "answer_loss")
    return {
        metric: {
            "mean": told([statistics.mean(run[task][metric] for task in TASKS) for run in runs]),
            **{task: told([run[task][metric] for run in runs]) for task in TASKS},
        }
        for metric in metrics
    }


def measure(seeds: int, validation: int, test: int, store: str) -> Found:
    """Return what each merge method gives without a sparsifier and with each, and the settings that were chosen."""
    figures: Found = {}
    for method in ("task_arithmetic", "ties"):
        density = {"choose": list(RETAINED)} if method == "ties" else None
        plain = best_of(template_of(method, {"choose": list(SCALES)}, density), validation, store)
        chosen = plain["parameters"]
        figures[method] = {"settings": chosen, **summed_up([on_test(plain, test, store)])}
        for sparsifier in SPARSIFIERS:
            runs, ratios = [], []
            for seed in range(seeds):
                ratio = {"choose": [round(1 / (1 - sparsity), 6) for sparsity in SPARSITIES]}
                template = template_of(method, chosen["lambda"], chosen.get("density"))
                own = {"sparsify": {"method": sparsifier, "cr": ratio, "seed": seed}}
                best = best_of({**template, "impart": own}, validation, store)
                ratios.append(best["impart"]["sparsify"]["cr"])
                runs.append(on_test(best, test, store))
            figures[f"{method} + {sparsifier}"] = {"cr": ratios, **summed_up(runs)}
        print(json.dumps(figures, indent=1), flush=True)
    return figures


def by_samplers(seeds: int, validation: int, test: int, store: str) -> Found:
    """Return what samplers find for TIES with half of the grid's evaluations."""
    figures: Found = {}
    parameters = OTHERS["ties"]
    for sampler in ("tpe", "gp"):
        runs = []
        for seed in range(seeds):
            settings = {
                "sampler": {"name": sampler, "startup": 3},
                "budget": {"trials": len(SCALES) * len(RETAINED) // 2},
                "seed": seed,
            }
            template = template_of("ties", parameters["lambda"], parameters["density"])
            runs.append(on_test(best_of(template, validation, store, **settings), test, store))
        figures[f"ties by {sampler}"] = summed_up(runs)
    return figures


def by_methods(trials: int, validation: int, test: int, store: str) -> Found:
    """Return what each method gives after so many trials of TPE."""
    figures: Found = {}
    for method, parameters in OTHERS.items():
        template = {**template_of(method, None), "parameters": {"weight": 1.0, **parameters}}
        if method in ("sce", "ramplus_tl"):  # neither has weights
            template["parameters"] = dict(parameters)
        settings = {"sampler": {"name": "tpe", "startup": 4}, "budget": {"trials": trials}}
        best = best_of(template, validation, store, **settings)
        figures[method] = {"settings": best["parameters"], **summed_up([on_test(best, test, store)])}
        print(json.dumps({method: figures[method]}), flush=True)
    return figures


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=10, help="trials of each method")
    parser.add_argument("--validation", type=int, default=100, help="validation items of each task")
    parser.add_argument("--test", type=int, default=300, help="test items of each task")
    parser.add_argument("--store", help="where artifacts go; a scratch folder when left out")
    parser.add_argument("--out", type=Path, default=Path("merged.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        store = arguments.store or f"{scratch}/store"
        sizes = (arguments.validation, arguments.test, store)
        figures = {
            "methods": by_methods(arguments.trials, *sizes),
            "samplers": by_samplers(arguments.seeds, *sizes),
            "paper": measure(arguments.seeds, *sizes),
        }
    arguments.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
