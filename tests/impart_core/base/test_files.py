"""Files that appear whole or not at all, and operating-system errors as sentences."""

import errno
import os
import tempfile
from pathlib import Path

import pytest

from impart_core.base.errors import StoreError, StoreFullError
from impart_core.base.files import disk_errors, scratch_folder, write_atomically


def test_a_file_is_written_and_replaced_whole(tmp_path: Path) -> None:
    for data in (b"first", b"", b"x" * 100_000):
        write_atomically(tmp_path / "file", data)
        assert (tmp_path / "file").read_bytes() == data
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_taken_name_is_kept_when_placed_by_link(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", b"first", place=os.link)
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "file", b"second", place=os.link)
    assert (tmp_path / "file").read_bytes() == b"first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_failure_before_the_last_step_leaves_the_old_file_and_no_scratch(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", b"old")

    def fail(scratch: Path, target: Path) -> None:
        assert scratch.read_bytes() == b"new"
        raise OSError(errno.EIO, "input/output error")

    with pytest.raises(OSError, match="input/output"):
        write_atomically(tmp_path / "file", b"new", place=fail)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_sentence_that_names_the_place(code: int) -> None:
    with pytest.raises(StoreFullError, match="No space left while writing to the shelf"), disk_errors("the shelf"):
        raise OSError(code, os.strerror(code))


@pytest.mark.parametrize(
    "code",
    [
        *(errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.ENOENT, errno.EEXIST, errno.EISDIR),
        *(errno.ENOTSUP, errno.EFBIG, errno.ENAMETOOLONG),
    ],
)
def test_a_refusal_is_a_sentence_that_names_the_place_and_is_not_a_full_disk(code: int) -> None:
    with pytest.raises(StoreError, match="Cannot write to the shelf") as caught, disk_errors("the shelf"):
        raise OSError(code, os.strerror(code))
    assert not isinstance(caught.value, StoreFullError)


def test_errors_that_may_pass_by_themselves_stay_what_they_are() -> None:
    with pytest.raises(OSError, match="later") as caught, disk_errors("the shelf"):
        raise OSError(errno.EIO, "later")
    assert caught.value.errno == errno.EIO


def test_a_real_refusal_of_the_system_is_translated(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="Cannot write"), disk_errors("it"):
        write_atomically(tmp_path / "file" / "below", b"data")


def test_only_what_fails_in_the_scratch_folder_is_said_to_fail_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="elsewhere"), scratch_folder():
        (tmp_path / "elsewhere").read_bytes()
    with pytest.raises(OSError, match="elsewhere") as caught, scratch_folder():
        raise OSError(errno.ENOSPC, "full", str(tmp_path / "elsewhere"))
    assert not isinstance(caught.value, StoreError)
    with pytest.raises(StoreError, match="Cannot write to the scratch folder"), scratch_folder() as scratch:
        (scratch / "missing" / "file").write_bytes(b"")
    with pytest.raises(StoreFullError, match="the scratch folder"), scratch_folder():
        raise OSError(errno.ENOSPC, "a write names no file")
    assert not scratch.exists()


def test_a_scratch_folder_that_cannot_be_made_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(StoreError, match=r"Cannot write to the scratch folder .*gone"), scratch_folder():
        pass
