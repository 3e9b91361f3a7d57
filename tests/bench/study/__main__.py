"""`make study`: methods × ratios × zoos in bytes on disk, run by the pipeline's own engine.

Every delta and every score is an artifact in a store: a study that is killed goes on where it stopped, and another one
makes only what is new. Figures go to a JSON file after each cell; cells that are there and not asked for stay.
`python -m tests.bench.study.report` makes tables and curves of that file.
"""

import argparse
import os
import subprocess
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from impart_core.base.errors import ImpartError
from impart_core.store.store import Store
from tests.bench.arguments import at_least_one, item_count, ratio, require_place, write_figures
from tests.bench.study.grid import RATIOS, ROWS, SHIPPED, ZOOS, Cell, cells, rows_of
from tests.bench.study.measure import Asked, measure_cell
from tests.bench.study.tables import all_tables, read_study


def main(arguments: list[str] | None = None) -> None:
    """Measure what is asked for, write it down, and print the tables."""
    parser = _parser()
    given = parser.parse_args(arguments)
    asked = Asked(
        store=str(given.store.absolute()),
        items=given.items,
        validation_items=given.validation_items,
        seeds=given.seeds,
        settings=given.settings,
        exact_match=given.exact_match,
    )
    for name in given.zoos:
        missing = [model for model in ("base", *ZOOS[name].fine_tunes) if not ZOOS[name].path(model).is_dir()]
        if missing:
            place = ZOOS[name].path(missing[0]).parent
            parser.error(f"The {name} zoo lacks {', '.join(missing)} in {place}. Make it by `make {name}-zoo`.")
    wanted = list(cells(rows_of(given.methods), given.ratios, given.zoos))
    require_place(parser, given.out)
    study = read_study(parser, given.out)
    try:
        Store(asked.store).require_writable()
    except ImpartError as error:
        parser.error(str(error))
    for done, (cell, found) in enumerate(_measured(wanted, asked, given.jobs), 1):
        figures = found and {**found, "commit": _commit()}
        study["cells"][cell.key] = figures
        write_figures(given.out, study)
        told = "not possible" if figures is None else _told(figures)
        print(f"{done}/{len(wanted)} {cell.key}: {told}", flush=True)
    print(all_tables(study))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make study", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("study.json"), help="where the figures go")
    parser.add_argument("--store", type=Path, default=Path("study-store"), help="folder of the artifacts")
    parser.add_argument("--methods", nargs="*", choices=list(ROWS), default=list(ROWS), metavar="ROW", help="rows")
    parser.add_argument("--ratios", nargs="*", type=ratio, default=RATIOS, help="compression ratios of projections")
    shipped = list(SHIPPED)
    parser.add_argument("--zoos", nargs="*", choices=list(ZOOS), default=shipped, help="which zoos (those shipped)")
    parser.add_argument("--seeds", type=at_least_one, default=3, help="seeds of the masks, for methods that have some")
    parser.add_argument("--items", type=item_count, default=300, help="test items of a task")
    parser.add_argument("--validation-items", type=item_count, default=100, help="items that settings are chosen by")
    parser.add_argument("--settings", type=at_least_one, default=3, help="settings of a row that are tried")
    parser.add_argument("--exact-match", action="store_true", help="generate answers as well: ten times as slow")
    parser.add_argument("--jobs", type=at_least_one, default=os.cpu_count(), help="cells at once")
    return parser


def _measured(wanted: list[Cell], asked: Asked, jobs: int) -> Iterable[tuple[Cell, dict[str, Any] | None]]:
    """Yield cells with their figures as they are finished."""
    if jobs == 1:
        yield from ((cell, measure_cell(cell, asked)) for cell in wanted)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        pending = {pool.submit(measure_cell, cell, asked): cell for cell in wanted}
        for future in as_completed(pending):
            yield pending[future], future.result()


def _told(figures: dict[str, Any]) -> str:
    (loss, _), (share, error) = figures["answer_loss"], figures["share_kept"]
    return f"loss {loss:.4f}, kept {share:.4f} ± {error:.4f}, {figures['bytes']:,.0f} bytes"


def _commit() -> str:
    """Return the commit that is checked out, with a mark where files differ from it; empty outside of a repository."""
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude", "*"], capture_output=True, text=True, check=False
    )
    return told.stdout.strip()


if __name__ == "__main__":
    main()
