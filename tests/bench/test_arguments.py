"""Benches refuse what is not possible before they measure anything."""

import json
from importlib import import_module
from pathlib import Path

import pytest

from tests.bench.arguments import write_figures

BENCHES = ("distil", "experts", "methods", "pruning", "quality")


def refusal(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *given: str) -> str:
    monkeypatch.setattr("sys.argv", [name, *given])
    with pytest.raises(SystemExit) as stopped:
        import_module(f"tests.bench.{name}").main()
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("name", BENCHES)
def test_a_place_that_is_not_there_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refusal(name, monkeypatch, capsys, "--out", str(tmp_path / "absent" / "figures.json"))
    assert "there is no folder" in told


@pytest.mark.parametrize("name", [one for one in BENCHES if one != "pruning"])  # which reads no figures
@pytest.mark.parametrize("text", ['{"cut', "[]"])
def test_broken_figures_are_refused_and_stay(
    name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    file.write_text(text)
    assert str(file) in refusal(name, monkeypatch, capsys, "--out", str(file))
    assert file.read_text() == text


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("distil", "--seeds"),
        ("experts", "--cr"),
        ("gemma", "--items"),
        ("methods", "--jobs"),
        ("pruning", "--near"),
        ("quality", "--items"),
        ("spectra", "--ratios"),
    ],
)
def test_numbers_below_one_are_refused(
    name: str, option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"argument {option}: '0' is no" in refusal(name, monkeypatch, capsys, option, "0")


def test_figures_that_cannot_be_written_leave_those_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "figures.json"
    write_figures(file, {"a": 1})

    def full(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_figures(file, {"a": 2})
    assert json.loads(file.read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--settings", "{beta"), "is no JSON"),
        (("--settings", "[1]"), "is no JSON object"),
        (("--zoo", "flat", "--tasks", "chat"), "The flat zoo has no chat. It has math, code."),
    ],
)
def test_settings_and_tasks_of_pruning_are_checked(
    given: tuple[str, ...], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in refusal("pruning", monkeypatch, capsys, *given)
