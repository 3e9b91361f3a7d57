"""Markdown tables of the study's figures."""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from tests.bench.arguments import read_figures
from tests.bench.study.bd_rate import bd_rate, quality_at
from tests.bench.study.figures import Figures, over_tasks
from tests.bench.study.grid import RATIOS, REFERENCES, ROWS, ZOOS, Cell

Study = Mapping[str, Any]
TARGETS = {64.0: 0.99, 128.0: 0.96, 256.0: 0.86, 512.0: 0.62}
SIZES = {"bytes": "everything on disk", "projection_bytes": "codes of projections"}
_NOT_MEASURED, _IMPOSSIBLE = "", "not possible"


def read_study(parser: argparse.ArgumentParser, file: Path) -> dict[str, Any]:
    """Return the study in a file, one without cells where there is no file; end the command where it is broken."""
    study = read_figures(parser, file) or {"cells": {}}
    cells = study.get("cells")
    if not isinstance(cells, dict):
        parser.error(f'{file} is no study: it has no object "cells". Move it, or name another file.')
    if broken := [key for key, figures in cells.items() if not _is_cell(key, figures)]:
        parser.error(
            f"{file} is broken: {broken[0]!r} is no cell (ZOO/TASK/ROW/RATIO) with figures. Take it out to go on."
        )
    return study


def _is_cell(key: str, figures: Any) -> bool:
    """Whether a cell has a known zoo and what tables are made of; one that is not possible has nothing."""
    zoo_name, *rest = key.split("/")
    if zoo_name not in ZOOS or len(rest) != 3:
        return False
    if figures is None:
        return True
    if not isinstance(figures, dict):
        return False
    single = [figures.get(name) for name in (*SIZES, "cr_model")]
    pairs = [figures.get(name) for name in ("answer_loss", "share_kept")]
    pairs += [figures["exact_match"]] if "exact_match" in figures else []
    return all(_is_number(one) and one > 0 for one in single) and all(
        isinstance(pair, list) and len(pair) == 2 and all(map(_is_number, pair)) for pair in pairs
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def all_tables(study: Study) -> str:
    """Return all tables, with a heading before each."""
    parts = []
    for name in zoos_of(study):
        parts += [
            f"Share of the gap kept, {name} zoo, mean over tasks:",
            _by_ratio(study, name, _share),
            f"Bytes on disk, {name} zoo, mean over tasks (cr_model):",
            _by_ratio(study, name, _size),
        ]
        parts += [f"Share kept by task, {name} zoo:", _by_task(study, name, _share)]
        parts += [
            f"Answer loss by task, {name} zoo; exact match where it was measured:",
            _by_task(study, name, _scores),
        ]
    parts += ["Targets:", targets(study), "BD-rate:", bd_rates(study)]
    return "\n\n".join(parts)


def zoos_of(study: Study) -> list[str]:
    """Return the names of the zoos of which there are figures."""
    return list(dict.fromkeys(key.partition("/")[0] for key in sorted(study["cells"])))


def rows_in(study: Study, zoo_name: str) -> list[str]:
    """Return the rows of which there are figures on a zoo, in the order of the grid."""
    found = {key.split("/")[2] for key in study["cells"] if key.startswith(f"{zoo_name}/")}
    return [row for row in ROWS if row in found]


def by_tasks(study: Study, zoo_name: str, row: str, cr: float) -> list[Figures] | None:
    """Return a row's figures on all tasks of a zoo; None where one is impossible, none where one is not measured."""
    found = [study["cells"].get(Cell(zoo_name, task, row, cr).key, _NOT_MEASURED) for task in ZOOS[zoo_name].fine_tunes]
    if None in found:
        return None
    return [] if _NOT_MEASURED in found else found


def curve(study: Study, zoo_name: str, row: str, size: str = "bytes") -> list[tuple[float, float]]:
    """Return a row's points on a zoo: mean bytes and mean share kept over its tasks, one for each ratio."""
    found = [figures for cr in RATIOS if (figures := by_tasks(study, zoo_name, row, cr))]
    return [(sum(one[size] for one in each) / len(each), over_tasks(each, "share_kept")[0]) for each in found]


def targets(study: Study) -> str:
    """Return what `ecsq` keeps without calibration beside what it is to keep, by what the ratio counts.

    Of projections: the ratio that was asked for. Of everything on disk: the fine-tune's bytes over those of the delta,
    manifests included; shares are interpolated between the ratios that were measured.
    """
    lines = [
        _line(["zoo", "row", "ratio of", *(f"CR {cr:g}: ≥ {least}" for cr, least in TARGETS.items())]),
        "|---|---|---|" + "--:|" * len(TARGETS),
    ]
    for name in zoos_of(study):
        for row in (row for row in rows_in(study, name) if ROWS[row].method == "ecsq" and not ROWS[row].ablation):
            asked = [by_tasks(study, name, row, cr) for cr in TARGETS]
            shares = [over_tasks(found, "share_kept")[0] if found else None for found in asked]
            lines.append(_line([name, row, "projections", *map(_judged, shares, TARGETS.values())]))
            points = curve(study, name, row)
            shares = [quality_at(points, dense_bytes(study, name) / cr) if points else None for cr in TARGETS]
            lines.append(_line([name, row, "everything", *map(_judged, shares, TARGETS.values())]))
    return "\n".join(lines)


def dense_bytes(study: Study, zoo_name: str) -> float:
    """Return the bytes of a zoo's fine-tunes, of which cr_model is a ratio."""
    found = next(one for key, one in study["cells"].items() if one and key.startswith(f"{zoo_name}/"))
    return float(found["bytes"] * found["cr_model"])


def _judged(share: float | None, least: float) -> str:
    return "–" if share is None else f"{share:.3f}" + ("" if share >= least else " (missed)")


def bd_rates(study: Study) -> str:
    """Return the mean change of bytes at equal share kept, of each row against each reference."""
    lines = [_line(["zoo", "bytes", "row", *(f"against {name}" for name in REFERENCES)]), "|---|---|---|--:|--:|--:|"]
    for name, (size, what) in product(zoos_of(study), SIZES.items()):
        for row in rows_in(study, name):
            rates = [
                None if other == row else bd_rate(curve(study, name, row, size), curve(study, name, other, size))
                for other in REFERENCES
            ]
            if any(rate is not None for rate in rates):
                lines.append(
                    _line([name, what, row, *("–" if rate is None else f"{100 * rate:+.0f} %" for rate in rates)])
                )
    return "\n".join(lines)


def _by_ratio(study: Study, zoo_name: str, show: Callable[[list[Figures]], str]) -> str:
    lines = [_line(["method", *(f"CR {cr:g}" for cr in RATIOS)]), "|---|" + "--:|" * len(RATIOS)]
    for row in rows_in(study, zoo_name):
        found = [by_tasks(study, zoo_name, row, cr) for cr in RATIOS]
        lines.append(_line([row, *(show(figures) if figures else _missing(figures) for figures in found)]))
    return "\n".join(lines)


def _by_task(study: Study, zoo_name: str, show: Callable[[list[Figures]], str]) -> str:
    lines = [_line(["task", "method", *(f"CR {cr:g}" for cr in RATIOS)]), "|---|---|" + "--:|" * len(RATIOS)]
    for task, row in product(ZOOS[zoo_name].fine_tunes, rows_in(study, zoo_name)):
        found = [study["cells"].get(Cell(zoo_name, task, row, cr).key, _NOT_MEASURED) for cr in RATIOS]
        cells = [show([one]) if one else _missing(None if one is None else []) for one in found]
        lines.append(_line([task, row, *cells]))
    return "\n".join(lines)


def _share(figures: list[Figures]) -> str:
    share, error = over_tasks(figures, "share_kept")
    return f"{share:.3f} ± {error:.3f}"


def _scores(figures: list[Figures]) -> str:
    told = "{:.4f} ± {:.4f}".format(*over_tasks(figures, "answer_loss"))
    if any("exact_match" not in one for one in figures):
        return told
    share, error = over_tasks(figures, "exact_match")
    return f"{told}; {100 * share:.1f} ± {100 * error:.1f} %"


def _size(figures: list[Figures]) -> str:
    size, ratio = (sum(one[name] for one in figures) / len(figures) for name in ("bytes", "cr_model"))
    return f"{size:,.0f} ({ratio:.0f}×)"


def _missing(figures: Sequence[Figures] | None) -> str:
    return _IMPOSSIBLE if figures is None else _NOT_MEASURED


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
