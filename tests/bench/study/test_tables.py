"""Tables and the page that they go into, from a small study."""

import json
from pathlib import Path
from typing import Any

import pytest

from impart_core.base.errors import ConfigError
from tests.bench.study.grid import RATIOS, Cell, rows_of
from tests.bench.study.report import BEGIN, END, draw, main, with_tables
from tests.bench.study.tables import all_tables, bd_rates, by_tasks, curve, targets

TASKS = ("math", "code", "chat")


def cell(size: float, share: float) -> dict[str, Any]:
    return {
        "bytes": size,
        "projection_bytes": size / 2,
        "cr_model": 64_000 / size,
        "answer_loss": [1 - share, 0.01],
        "share_kept": [share, 0.03],
    }


def study_of(**rows: dict[float, dict[str, Any] | None]) -> dict[str, Any]:
    cells = {
        Cell("first", task, row.replace("_", "-"), cr).key: figures
        for row, by_ratio in rows.items()
        for cr, figures in by_ratio.items()
        for task in TASKS
    }
    return {"cells": cells}


STUDY = study_of(
    ecsq={64.0: cell(1000, 0.995), 128.0: cell(500, 0.9), 256.0: cell(250, 0.8)},
    impart_qt={64.0: cell(2000, 0.995), 128.0: cell(1000, 0.9), 256.0: None},
)


def test_means_are_over_all_tasks_or_missing() -> None:
    assert curve(STUDY, "first", "ecsq") == [(1000, 0.995), (500, pytest.approx(0.9)), (250, pytest.approx(0.8))]
    assert by_tasks(STUDY, "first", "impart-qt", 256.0) is None
    assert by_tasks(STUDY, "first", "impart-qt", 512.0) == []
    part = {"cells": {key: one for key, one in STUDY["cells"].items() if "/chat/" not in key}}
    assert curve(part, "first", "ecsq") == []


def test_half_the_bytes_at_equal_quality_is_minus_fifty_percent() -> None:
    (line,) = [line for line in bd_rates(STUDY).splitlines() if "| everything on disk | ecsq |" in line]
    assert line == "| first | everything on disk | ecsq | -50 % | – | – |"


def test_missed_targets_are_called_so() -> None:
    """The fine-tune has 64,000 bytes: on disk CR 64 is the largest delta, CR 128 the next, CR 512 is not there."""
    projections, everything = targets(STUDY).splitlines()[2:]
    assert projections == "| first | ecsq | projections | 0.995 | 0.900 (missed) | 0.800 (missed) | – |"
    assert everything == "| first | ecsq | everything | 0.995 | 0.900 (missed) | 0.800 (missed) | – |"


def test_a_cell_that_is_impossible_differs_from_one_that_was_not_measured() -> None:
    (line,) = [line for line in all_tables(STUDY).splitlines() if line.startswith("| impart-qt | ") and "×" not in line]
    cells = [one.strip() for one in line.split("|")[2:-1]]
    assert cells == ["", "", "", "0.995 ± 0.017", "0.900 ± 0.017", "not possible", ""]
    assert len(cells) == len(RATIOS)


def test_losses_have_exact_matches_beside_them_where_these_were_measured() -> None:
    measured = {**cell(1000, 0.995), "exact_match": [0.934, 0.0141]}
    told = all_tables(study_of(ecsq={64.0: measured, 128.0: cell(500, 0.9)}))
    (line,) = [line for line in told.splitlines() if line.startswith("| math | ecsq | ") and "%" in line]
    cells = [one.strip() for one in line.split("|")[3:-1]]
    assert cells == ["", "", "", "0.0050 ± 0.0100; 93.4 ± 1.4 %", "0.1000 ± 0.0100", "", ""]


def test_a_page_gets_its_tables_between_its_marks_and_keeps_the_rest() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = with_tables(page, STUDY)
    assert once == with_tables(once, STUDY)
    assert once.startswith("before\n")
    assert once.endswith("after\n")
    assert "old" not in once
    assert all_tables(STUDY) in once
    with pytest.raises(ConfigError, match="between which the tables go"):
        with_tables("no marks", STUDY)


def test_a_report_puts_tables_picture_and_figures_beside_each_other(tmp_path: Path) -> None:
    figures = tmp_path / "mine.json"
    figures.write_text(json.dumps(STUDY))
    (tmp_path / "results.md").write_text(f"{BEGIN}{END}")
    main([str(figures), "--docs", str(tmp_path)])
    assert json.loads((tmp_path / "study.json").read_text()) == STUDY
    assert all_tables(STUDY) in (tmp_path / "results.md").read_text()
    assert (tmp_path / "study.svg").read_bytes() == draw(STUDY)


def test_the_picture_is_the_same_each_time() -> None:
    assert draw(STUDY) == draw(STUDY)
    assert draw(STUDY) != draw({"cells": {key: one for key, one in STUDY["cells"].items() if "/ecsq/" in key}})


def test_rows_come_in_the_order_of_the_tables() -> None:
    assert rows_of(["dare", "ecsq, all coded"]) == ["ecsq, all coded", "dare"]


def test_a_zoo_on_which_nothing_is_possible_has_tables() -> None:
    assert "| ecsq | " in all_tables(study_of(ecsq={512.0: None}))


BROKEN = {
    "empty": '{"cells": {}}',
    "nothing possible": json.dumps(study_of(ecsq={512.0: None})),
    "cut off": json.dumps(STUDY)[:100],
    "a list": "[]",
    "cells in a list": '{"cells": []}',
    "a zoo that is not known": '{"cells": {"third/math/ecsq/64": null}}',
    "a cell without figures": '{"cells": {"first/math/ecsq/64": {"bytes": 5}}}',
    "a cell that is text": '{"cells": {"first/math/ecsq/64": "good"}}',
    "not there": None,
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_report_of_a_broken_study_is_refused_and_changes_nothing(
    tmp_path: Path, text: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    figures, docs = tmp_path / "mine.json", tmp_path / "docs"
    docs.mkdir()
    if text is not None:
        figures.write_text(text)
    before = {"study.json": "mine", "results.md": f"{BEGIN}{END}", "study.svg": "drawn"}
    for name, content in before.items():
        (docs / name).write_text(content)
    with pytest.raises(SystemExit) as stopped:
        main([str(figures), "--docs", str(docs)])
    assert stopped.value.code == 2
    assert str(figures) in capsys.readouterr().err
    assert {path.name: path.read_text() for path in docs.iterdir()} == before


@pytest.mark.parametrize("page", ["no marks", None])
def test_a_report_without_a_page_for_it_writes_nothing(tmp_path: Path, page: str | None) -> None:
    figures, docs = tmp_path / "mine.json", tmp_path / "docs"
    docs.mkdir()
    figures.write_text(json.dumps(STUDY))
    if page is not None:
        (docs / "results.md").write_text(page)
    with pytest.raises(SystemExit) as stopped:
        main([str(figures), "--docs", str(docs)])
    assert stopped.value.code == 2
    assert [path.name for path in docs.iterdir()] == ([] if page is None else ["results.md"])
