"""Folders of this machine."""

import os
from pathlib import Path

import pytest

from impart_core.base.errors import CheckpointError
from impart_core.checkpoint.local import LocalFile, local_file, local_folder


def test_a_folder_lists_files_with_size_and_time_and_everything_else_as_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "folder").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "file")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    found = local_folder(tmp_path)
    assert found.location == str(tmp_path)
    assert list(found.entries) == ["broken", "file", "folder", "linked", "pipe"]
    assert [name for name, entry in found.entries.items() if entry] == ["file", "linked"]
    file = found.file("file")
    assert isinstance(file, LocalFile)
    assert (str(file), file.size) == (str(tmp_path / "file"), 3)
    stat = (tmp_path / "file").stat()
    assert file.stamp == f"{stat.st_ino}-{stat.st_mtime_ns}-{stat.st_ctime_ns}"


def test_a_file_is_read_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abcdef")
    file = local_file(tmp_path / "file")
    assert file.read(2, 5) == b"cde"
    assert file.on_disk(tmp_path / "scratch") == tmp_path / "file"


def test_a_file_has_one_address_by_whatever_path_it_is_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "linked").symlink_to(tmp_path / "file")
    monkeypatch.chdir(tmp_path)
    assert local_file(Path("file")).address == local_file(tmp_path / "linked").address == str(tmp_path / "file")
    assert str(local_file(Path("file"))) == "file"


def test_what_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    file = local_file(tmp_path / "file")
    (tmp_path / "file").unlink()
    for read in (lambda: file.read(0, 3), lambda: local_file(tmp_path / "file")):
        with pytest.raises(CheckpointError, match="file cannot be read: No such file"):
            read()
