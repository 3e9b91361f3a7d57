"""Folders that appear whole: nothing is lost and nothing left behind, wherever the process is killed."""

import errno
from pathlib import Path

import pytest

from impart_core.base import new_folder as module
from impart_core.base.errors import OutputExistsError, StoreError, StoreFullError
from impart_core.base.new_folder import check_output_folder, new_folder, require_apart
from tests.killing import run_killed

OLD, NEW = {"config.json": "old", "model.safetensors": "1", "b": "2"}, {"config.json": "new", "c.safetensors": "3"}
MOST_STEPS = 300


def test_a_new_folder_appears_whole(tmp_path: Path) -> None:
    with new_folder(tmp_path / "deep" / "out") as scratch:
        (scratch / "file").write_text("x")
        assert not (tmp_path / "deep" / "out").exists()
    assert [entry.name for entry in (tmp_path / "deep").iterdir()] == ["out"]
    assert (tmp_path / "deep" / "out" / "file").read_text() == "x"


def test_a_failure_leaves_neither_folder_nor_scratch(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"), new_folder(tmp_path / "out") as scratch:
        (scratch / "file").write_text("x")
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_while_writing_a_folder_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(StoreFullError, match="No space left"), new_folder(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "full")


def test_a_folder_with_files_is_refused_unless_it_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    check_output_folder(tmp_path / "out")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "out" / name).write_text("x")
    with pytest.raises(OutputExistsError, match="already holds files"), new_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "config.json").exists()
    with new_folder(tmp_path / "out", overwrite=True) as scratch:
        (scratch / "new").write_text("y")
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["new"]


def test_a_failed_replacement_keeps_the_old_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    make(tmp_path / "out", OLD)
    with pytest.raises(RuntimeError), new_folder(tmp_path / "out", overwrite=True):
        raise RuntimeError
    assert held(tmp_path / "out") == OLD


def test_a_file_in_the_folders_place_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(OutputExistsError):
        check_output_folder(tmp_path / "out", overwrite=True)


def make(out: Path, files: dict[str, str]) -> None:
    with new_folder(out, overwrite=True) as folder:
        for name, text in files.items():
            (folder / name).write_text(text)


def held(folder: Path) -> dict[str, str] | None:
    return {path.name: path.read_text() for path in folder.iterdir()} if folder.is_dir() else None


@pytest.mark.parametrize("swap", [True, False], ids=["swapped", "moved aside"])
def test_killed_anywhere_the_old_or_the_new_folder_is_there_and_the_next_run_clears_up(
    swap: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not swap:
        monkeypatch.setattr(module, "renameat2", lambda *_: None)
    kept: set[str] = set()
    for stop_at in range(1, MOST_STEPS):
        out = tmp_path / str(stop_at) / "out"
        make(out, OLD)
        ended = run_killed(lambda out=out: make(out, NEW), stop_at)  # type: ignore[misc]
        aside = [path for path in out.parent.glob(".out.*.tmp/old") if path.is_dir()]
        (whole,) = [found for found in map(held, (out, *aside)) if found in (OLD, NEW)][:1]
        kept.add(whole["config.json"])
        with pytest.raises(RuntimeError), new_folder(out, overwrite=True):
            assert held(out) in (OLD, NEW)
            raise RuntimeError
        assert [path.name for path in out.parent.iterdir()] == ["out"]
        if ended:
            break
    assert ended
    assert stop_at > 20
    assert kept == {"old", "new"}


def test_what_a_living_run_works_on_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with new_folder(out) as first:
        (first / "file").write_text("x")
        make(out, NEW)
        assert (first / "file").read_text() == "x"
        with pytest.raises(OutputExistsError, match="already holds files"), new_folder(out):
            pass
        assert (first / "file").exists()
        first_stays = sorted(path.name for path in tmp_path.iterdir())
        assert len(first_stays) == 2
        for path in out.iterdir():
            path.unlink()
    assert held(out) == {"file": "x"}


def test_of_two_that_make_the_same_folder_one_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OutputExistsError, match="made by somebody else meanwhile"), new_folder(out) as first:
        (first / "file").write_text("x")
        make(out, NEW)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert held(out) == NEW


@pytest.mark.parametrize(
    "files", [{"thesis.txt": "years"}, {"config.json": "{}", "app.py": "x"}, {"a.safetensors": ""}]
)
def test_what_holds_no_model_is_not_overwritten(files: dict[str, str], tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(OutputExistsError, match="holds files, but no model"):
        make(tmp_path, NEW)
    assert held(tmp_path) == files


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "circle").symlink_to("circle")
    for place in ("file/out", "file/deep/out", "circle/out", "n" * 300, "nul\0"):
        with pytest.raises(StoreError) as told:
            check_output_folder(tmp_path / place)
        assert str(told.value).endswith((".", "another.")) and "Traceback" not in str(told.value)
    monkeypatch.setattr(module.os, "access", lambda *_: False)  # a test that runs as root may write anywhere
    with pytest.raises(StoreError, match="cannot be written to"):
        check_output_folder(tmp_path / "deep" / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["circle", "file"]


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    make(tmp_path / "real", OLD)
    (tmp_path / "out").symlink_to("real")
    make(tmp_path / "out", NEW)
    assert (tmp_path / "out").is_symlink()
    assert held(tmp_path / "real") == NEW


def test_places_that_must_stay_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, base, here = (tmp_path / name for name in ("zoo/store", "models/base", "work/deep"))
    for folder in (store, base, here):
        folder.mkdir(parents=True)
    (tmp_path / "link").symlink_to(store)
    monkeypatch.chdir(here)
    others = {"the store": store, "the base": base}
    lost = (store, store.parent, tmp_path, base, base.parent, here, here.parent, Path(".."), Path("/"))
    for out in (*lost, store / "artifacts", base / "inside", tmp_path / "link", tmp_path / "link" / "x"):
        with pytest.raises(OutputExistsError, match=r"Choose another folder\."):
            require_apart(out, others)
    for out in (tmp_path / "out", store.parent / "out", base.parent / "out", here / "out", Path("out")):
        require_apart(out, others)
