"""What all files of checkpoints have in common, wherever they lie."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.base.errors import CheckpointError
from impart_core.checkpoint import source
from impart_core.checkpoint.source import Folder, SourceFile, no_folder


@dataclass(frozen=True)
class Held(SourceFile):
    """A file that is held in memory."""

    data: bytes = b""

    def read_into(self, start: int, buffer: memoryview) -> int:
        found = self.data[start : start + len(buffer)]
        buffer[: len(found)] = found
        return len(found)

    def on_disk(self, scratch: Path) -> Path:
        self.copy_to(scratch / "held")
        return scratch / "held"


def held(data: bytes, size: int | None = None) -> Held:
    return Held("held://file", len(data) if size is None else size, None, data)


@given(data=st.binary(max_size=100), chunk=st.integers(1, 40), ends=st.tuples(st.integers(0, 100), st.integers(0, 100)))
@settings(deadline=None)
def test_pieces_of_any_size_make_up_the_range(data: bytes, chunk: int, ends: tuple[int, int]) -> None:
    start, end = sorted(min(at, len(data)) for at in ends)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "CHUNK", chunk)
        pieces = [bytes(piece) for piece in held(data).chunks(start, end)]
    assert b"".join(pieces) == data[start:end] == held(data).read(start, end)
    assert all(0 < len(piece) <= chunk for piece in pieces)


def test_a_file_is_copied_byte_for_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "CHUNK", 7)
    data = hashlib.sha256(b"x").digest() * 5
    assert held(data).on_disk(tmp_path).read_bytes() == data


def test_a_file_that_ends_before_its_size_is_refused(tmp_path: Path) -> None:
    short = held(b"abc", size=4)
    for read in (lambda: short.read(0, 4), lambda: list(short.chunks(2, 4)), lambda: short.on_disk(tmp_path)):
        with pytest.raises(CheckpointError, match="held://file became shorter"):
            read()


def test_a_folder_tells_its_files_from_its_folders() -> None:
    file = held(b"abc")
    folder = Folder("held://", {"file": file, "folder": None})
    assert folder.file("file") is file
    assert folder.file("folder") is folder.file("absent") is folder.file("..") is None


def test_a_location_that_is_no_folder_says_what_to_give() -> None:
    assert str(no_folder("a/b", "is a file")) == (
        "The checkpoint folder a/b is a file. Give the folder that holds config.json."
    )
