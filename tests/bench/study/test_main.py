"""What is wrong with arguments is told before anything is measured, and loses nothing."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.bench.study import __main__ as study
from tests.bench.study.grid import Cell
from tests.bench.study.measure import Asked

FIGURES = {
    "bytes": 1000.0,
    "projection_bytes": 500.0,
    "cr_model": 64.0,
    "answer_loss": [0.1, 0.01],
    "share_kept": [0.9, 0.01],
}
KEY = "first/math/ecsq/64"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cells that were measured; nothing is compressed."""
    found: list[str] = []

    def measure(cell: Cell, _: Asked) -> dict[str, object]:
        found.append(cell.key)
        return dict(FIGURES)

    monkeypatch.setattr(study, "measure_cell", measure)
    return found


def run(folder: Path, *more: str) -> None:
    small = ["--methods", "ecsq", "--ratios", "64", "--zoos", "first", "--jobs", "1"]
    study.main(["--out", str(folder / "study.json"), "--store", str(folder / "store"), *small, *more])


@pytest.mark.parametrize(
    "wrong",
    [
        *(["--settings", value] for value in ("0", "-1", "x")),
        *(["--items", value] for value in ("0", "-1", "301", "100000")),
        ["--validation-items", "0"],
        *(["--ratios", value] for value in ("0", "nan", "inf", "x")),
        ["--seeds", "0"],
        *(["--jobs", value] for value in ("0", "-3")),
        ["--methods", "ecqs"],
        ["--zoos", "third"],
    ],
    ids=" ".join,
)
def test_what_is_not_possible_is_refused_and_the_figures_stay(
    tmp_path: Path, measured: list[str], wrong: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = json.dumps({"cells": {KEY: FIGURES}})
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, *wrong)
    assert stopped.value.code == 2
    assert f"argument {wrong[0]}: " in capsys.readouterr().err
    assert (tmp_path / "study.json").read_text() == text
    assert measured == []


@pytest.mark.parametrize("text", ['{"cells": {"first', "[]", '{"cells": 5}', '{"cells": {"first/math/ecsq/64": 5}}'])
def test_a_broken_file_of_figures_is_refused_and_stays(
    tmp_path: Path, measured: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path)
    assert stopped.value.code == 2
    assert str(tmp_path / "study.json") in capsys.readouterr().err
    assert (tmp_path / "study.json").read_text() == text
    assert measured == []


def test_places_that_cannot_be_written_are_refused_first(
    tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()

    def refused(*wrong: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            run(tmp_path, *wrong)
        assert stopped.value.code == 2
        return capsys.readouterr().err

    assert "there is no folder" in refused("--out", str(tmp_path / "absent" / "study.json"))
    assert "it is not a file" in refused("--out", str(tmp_path))
    assert "file" in refused("--store", str(tmp_path / "file"))
    monkeypatch.setattr("os.access", lambda *_: False)
    assert "nothing may be written" in refused()
    assert measured == []


def test_a_zoo_that_was_not_made_is_refused(
    tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, "--zoos", "gemma")
    assert stopped.value.code == 2
    assert "`make gemma-zoo`" in capsys.readouterr().err
    assert measured == []


def test_what_is_measured_is_added_to_the_figures(tmp_path: Path, measured: list[str]) -> None:
    (tmp_path / "study.json").write_text(json.dumps({"cells": {"first/math/dare/8": None}}))
    run(tmp_path)
    cells = json.loads((tmp_path / "study.json").read_text())["cells"]
    assert sorted(cells) == sorted(["first/math/dare/8", *measured])
    assert len(measured) == 3
    assert {path.name for path in tmp_path.iterdir()} == {"study.json", "store"}
