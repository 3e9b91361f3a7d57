"""What a run has fetched of a remote checkpoint is not fetched again."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from impart_core.checkpoint import spool
from impart_core.checkpoint.digest import tensor_digests
from impart_core.checkpoint.index import open_checkpoint
from impart_core.checkpoint.reader import read_tensor
from impart_core.checkpoint.spool import keep, read_kept, spooling
from tests.impart_core.checkpoint.remotes import CountingFileSystem, upload
from tests.support import llama_shapes, random_tensors, save_checkpoint

TENSORS = random_tensors(llama_shapes(layers=1, hidden=128, intermediate=192, key_value=64))


@pytest.fixture
def url(tmp_path: Path) -> str:
    return upload(save_checkpoint(tmp_path / "model", TENSORS), "spooled")


def _read(start: int, end: int) -> bytes | None:
    buffer = bytearray(end - start)
    return bytes(buffer) if read_kept("file", start, memoryview(buffer)) else None


def test_a_tensor_that_was_digested_is_read_without_a_request(url: str) -> None:
    with spooling():
        checkpoint = open_checkpoint(url)
        digests = tensor_digests(checkpoint)
        CountingFileSystem.ranges.clear()
        for name, info in checkpoint.tensors.items():
            assert torch.equal(read_tensor(info, digests[name]), TENSORS[name])
        assert CountingFileSystem.ranges == []
    read_tensor(checkpoint.tensors["lm_head.weight"])
    assert len(CountingFileSystem.ranges) == 1  # the run is over


def test_a_file_that_was_written_anew_is_fetched_again(url: str, tmp_path: Path) -> None:
    with spooling():
        tensor_digests(open_checkpoint(url))
        other = {name: tensor + 1 for name, tensor in TENSORS.items()}
        upload(save_checkpoint(tmp_path / "other", other), "spooled")
        info = open_checkpoint(url).tensors["lm_head.weight"]
        assert torch.equal(read_tensor(info), other["lm_head.weight"])


def test_ranges_that_touch_are_one_and_a_gap_is_none() -> None:
    with spooling():
        keep("file", 10, b"bcd")
        keep("file", 20, b"xyz")
        assert _read(10, 13) == b"bcd"
        assert _read(11, 12) == b"c"
        assert _read(9, 12) is None
        assert _read(10, 21) is None
        keep("file", 13, b"efghijk")
        assert _read(10, 23) == b"bcdefghijkxyz"
        assert not read_kept("another file", 10, memoryview(bytearray(1)))
    assert _read(10, 13) is None


def test_no_more_is_kept_than_half_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(8))
    with spooling():
        keep("file", 0, b"abc")
        keep("file", 3, b"de")  # one byte too many
        keep("file", 3, b"d")
        assert _read(0, 4) == b"abcd"
        assert _read(4, 5) is None


def test_a_disk_that_fails_costs_a_request(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    def fail(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spool.os, "pwrite", fail)
    with spooling():
        checkpoint = open_checkpoint(url)
        tensor_digests(checkpoint)
        assert torch.equal(read_tensor(checkpoint.tensors["lm_head.weight"]), TENSORS["lm_head.weight"])


def test_copies_are_gone_when_the_run_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with spooling():
        keep("file", 0, b"abc")
        assert [file.read_bytes() for file in tmp_path.glob("*/*")] == [b"abc"]
    assert list(tmp_path.iterdir()) == []
