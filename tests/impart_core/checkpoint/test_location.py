"""Which locations are folders of this machine, URLs and models on the Hub."""

from pathlib import Path

import pytest

from impart_core.base.errors import CheckpointError
from impart_core.checkpoint.location import is_remote, open_folder


def test_urls_and_hub_ids_are_remote_and_folders_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert all(map(is_remote, ("s3://bucket/x", "hf://org/name", "org/name", "org/name@v1", "file:///x")))
    assert not any(map(is_remote, ("models/base", "base", "/org/name", "./org/name", "org/name/x", "~/name", "")))


@pytest.mark.parametrize("text", ["absent", "/absent/folder", "./absent/folder", "absent/folder/deep"])
def test_a_missing_folder_that_is_no_hub_id_is_told_as_a_folder(text: str) -> None:
    with pytest.raises(CheckpointError, match=f"^The checkpoint folder {text.removeprefix('./')} does not exist"):
        open_folder(text)


def test_a_path_is_a_folder_whatever_it_looks_like() -> None:
    with pytest.raises(CheckpointError, match=r"^The checkpoint folder org/name does not exist"):
        open_folder(Path("org/name"))
