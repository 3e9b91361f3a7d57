"""`make quality`: how well gain and noise of codes, which are known without data, tell what a model keeps.

Encodes the fine-tunes of the zoos by many settings and measures each: a line of a JSON-lines file has what was asked
for, fidelity and flatness of every projection and the share of the answer-loss gap from base to fine-tuned that is
kept. Lines that are there are not measured again. Everything but the projections stays fine-tuned. Then fits the rule
of `impart_core.delta.quality` to the lines by least squares, prints its coefficients, and how it ranks settings
(Spearman) and how far it is off (mean absolute error, a share below 0 counting as 0): on all lines, and on those of
each zoo and of each task by a rule that was fitted to the others. Last, how many settings a recipe of `impart zoo`
would pass over that asks for a share (`foretold_at_least`), and how many of these keep it after all.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from impart_core.base.errors import ConfigError
from impart_core.delta.fidelity import Fidelity
from impart_core.delta.quality import RULE, Kept, Quality, Rule, error_of
from impart_core.evaluation.result import Split
from tests.answers import FineTune, base_loss
from tests.bench.arguments import item_count, require_place
from tests.bench.study.grid import SHIPPED, ZOOS

Row = dict[str, Any]
_ASKED = (0.5, 0.7, 0.8, 0.9, 0.95)
_QUANTISED = {"group_size": 512, "solver": "nearest"}
_LADDER = {"ladder": "8x2,3x32,2", **_QUANTISED}
# method, options, ratios
SETTINGS: tuple[tuple[str, dict[str, Any], tuple[int, ...]], ...] = (
    ("ecsq", {}, (8, 16, 32, 64, 128, 256, 512)),
    ("impart", {}, (4, 8, 16, 32, 64)),
    ("dare", {}, (2, 4, 8, 16, 32, 64)),
    ("lowrank", {}, (4, 8, 16, 32, 64)),
    ("magnitude", {}, (4, 8, 16, 32, 64, 128)),
    ("bitdelta", {}, (16, 32, 64, 128)),
    ("impart-qt", {"c": 0.25, **_LADDER}, (16, 32, 64, 128)),
    ("delta-come", _LADDER, (16, 32, 64, 128)),
    ("ecsq", {"gain": 0.0}, (32, 64, 128, 256, 512)),
    ("ecsq", {"p": 2.0}, (64, 128, 256, 512)),
    ("dare-qt", {"bits": 4, **_QUANTISED}, (16, 32, 64, 128)),
    ("impart", {"allocation": "proportional"}, (16, 32, 64, 128)),
    ("ecsq", {"gain": 0.5}, (32, 64, 128, 256, 512)),
    ("dare-qt", {"bits": 2, **_QUANTISED}, (16, 32, 64, 128)),
)


def main() -> None:
    """Measure what is not in the file yet, and print the rule."""
    parser = argparse.ArgumentParser(prog="make quality", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("quality.jsonl"), help="where the lines go")
    parser.add_argument("--items", type=item_count, default=50, help="how many items of each validation split")
    parser.add_argument(
        "--zoos", nargs="*", choices=list(ZOOS), default=list(SHIPPED), help="which zoos (those shipped)"
    )
    asked = parser.parse_args()
    require_place(parser, asked.out)
    torch.set_num_threads(1)
    lines = asked.out.read_text().splitlines() if asked.out.exists() else []
    try:
        known = {_key(json.loads(line)) for line in lines}
    except (ValueError, KeyError, TypeError) as error:
        parser.error(f"{asked.out} has a line that is broken ({error!r}). Take it out to go on.")
    with asked.out.open("a") as out:
        for zoo in asked.zoos:
            for row in _measured(zoo, asked.items, known):
                out.write(json.dumps(row) + "\n")
                out.flush()
    rows = [json.loads(line) for line in asked.out.read_text().splitlines()]
    print(f"{len(rows)} settings; fitted: {fitted(rows)}", table(rows), passed_over(rows), sep="\n\n")


def fitted(rows: Sequence[Row]) -> Rule:
    """Return the rule with the least squared error on lines; outliers count less (soft L1)."""
    from scipy.optimize import least_squares

    known = [(_matrices(row), _share(row)) for row in rows]

    def errors(logarithms: Any) -> list[float]:
        rule = Rule(*np.exp(logarithms))
        return [rule.kept(matrices) - share for matrices, share in known]

    return Rule(*map(float, np.exp(least_squares(errors, np.log(RULE), loss="soft_l1", f_scale=0.05).x)))


def table(rows: Sequence[Row]) -> str:
    """Return how a rule does on the lines of each zoo and task, fitted to all lines or to none of these."""
    lines = ["| settings of | fitted to | settings | rank correlation | error |", "|---|---|--:|--:|--:|"]

    def line(of: str, to: str, rule: Rule, own: Sequence[Row]) -> str:
        return f"| {of} | {to} | {len(own)} | {_rank_correlation(rule, own):.3f} | {_error(rule, own):.3f} |"

    lines.append(line("all", "all", fitted(rows), rows))
    kinds: dict[str, Callable[[Row], str]] = {"zoos": _zoo, "tasks": lambda row: f"{_zoo(row)}, {row['task']}"}
    for kind, group in kinds.items():
        names = list(dict.fromkeys(map(group, rows)))
        for name in names if len(names) > 1 else ():
            own, others = ([row for row in rows if (group(row) == name) is same] for same in (True, False))
            lines.append(line(name, f"other {kind}", fitted(others), own))
    return "\n".join(lines)


def passed_over(rows: Sequence[Row]) -> str:
    """Return what a gate that asks for a share would pass over of each zoo, by a rule that was fitted to the others."""
    found: list[tuple[Quality, float]] = []
    for zoo in dict.fromkeys(map(_zoo, rows)):
        rule = fitted([row for row in rows if _zoo(row) != zoo] or rows)
        found += [(_told(rule, row), _share(row)) for row in rows if _zoo(row) == zoo]
    lines = ["| asked for | that keep less | passed over | of these keep it |", "|--:|--:|--:|--:|"]
    for share in _ASKED:
        over = [kept for quality, kept in found if quality.falls_short_of(share)]
        less, wrong = sum(kept < share for _, kept in found), sum(kept >= share for kept in over)
        lines.append(f"| {share:g} | {less} | {len(over)} | {wrong} |")
    return "\n".join(lines)


def _told(rule: Rule, row: Row) -> Quality:
    matrices = _matrices(row)
    return Quality(kept=rule.kept(matrices), error=error_of(matrices))


def _zoo(row: Row) -> str:
    return f"{row['zoo']} zoo"


def _rank_correlation(rule: Rule, rows: Sequence[Row]) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr([rule.kept(_matrices(row)) for row in rows], [row["kept"] for row in rows]).statistic)


def _error(rule: Rule, rows: Sequence[Row]) -> float:
    return float(np.mean([abs(rule.kept(_matrices(row)) - _share(row)) for row in rows]))


def _matrices(row: Row) -> list[Kept]:
    return [Kept(Fidelity(one["cosine_squared"], one["gain"]), one["flatness"]) for one in row["matrices"]]


def _share(row: Row) -> float:
    return min(1.0, max(0.0, float(row["kept"])))


def _measured(zoo: str, items: int, known: set[str]) -> Iterator[Row]:
    """Yield the lines of a zoo that are not known, all tasks of a setting after each other."""
    split: tuple[Split, int] = ("validation", items)
    models = {task: FineTune(task, zoo) for task in ZOOS[zoo].fine_tunes}
    tuned = {task: model.answer_loss(*split) for task, model in models.items()}
    base = {task: base_loss(task, zoo, *split) for task in models}
    for method, options, cr in _shuffled():
        for task, model in models.items():
            row: Row = {"zoo": zoo, "task": task, "method": method, "options": options, "cr": cr}
            if _key(row) in known:
                continue
            try:
                loss = model.compressed(cr, method, **options).answer_loss(*split)
            except ConfigError as error:
                print(f"{zoo}/{task} {method} {options} at CR {cr}: {error}", flush=True)
                continue
            row["loss"], row["kept"] = loss, (base[task] - loss) / (base[task] - tuned[task])
            row["matrices"] = [
                {"delta": delta, "base": weights, "flatness": model.flatness[name], **model.fidelities[name]._asdict()}
                for name, (delta, weights) in model.energies.items()
            ]
            print(f"{zoo}/{task} {method} {options} at CR {cr}: kept {row['kept']:.4f}", flush=True)
            yield row


def _shuffled() -> list[tuple[str, dict[str, Any], int]]:
    """Return all settings in one random order, so that those that are measured first are a sample of all."""
    every = [(method, options, cr) for method, options, ratios in SETTINGS for cr in ratios]
    Random(0).shuffle(every)
    return every


def _key(row: Row) -> str:
    return json.dumps([row[name] for name in ("zoo", "task", "method", "options", "cr")])


if __name__ == "__main__":
    main()
