"""Digests of checkpoints: of content, remembered between runs, and never wrongly."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from impart_core.checkpoint import digest as digests_module
from impart_core.checkpoint.digest import cache_folder, carried_digests, checkpoint_id, tensor_digests
from impart_core.checkpoint.index import open_checkpoint
from impart_core.checkpoint.reader import tensor_digest
from impart_core.checkpoint.weights import SINGLE
from tests.support import llama_shapes, random_tensors, save_checkpoint

TENSORS = random_tensors(llama_shapes(layers=1))


def test_a_checkpoints_id_does_not_depend_on_folder_or_sharding(tmp_path: Path) -> None:
    single = open_checkpoint(save_checkpoint(tmp_path / "single", TENSORS))
    sharded = open_checkpoint(save_checkpoint(tmp_path / "sharded", TENSORS, max_shard_bytes=4000))
    assert tensor_digests(single) == tensor_digests(sharded)
    assert checkpoint_id(tensor_digests(single)) == checkpoint_id(tensor_digests(sharded))


def test_one_changed_element_changes_that_digest_and_the_id(tmp_path: Path) -> None:
    changed = {name: tensor.clone() for name, tensor in TENSORS.items()}
    changed["model.norm.weight"][3] += 1
    before = tensor_digests(open_checkpoint(save_checkpoint(tmp_path / "before", TENSORS)))
    after = tensor_digests(open_checkpoint(save_checkpoint(tmp_path / "after", changed)))
    assert {name for name in before if before[name] != after[name]} == {"model.norm.weight"}
    assert checkpoint_id(before) != checkpoint_id(after)


def test_a_second_look_reads_no_weights(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save_checkpoint(tmp_path / "model", TENSORS))
    first = tensor_digests(checkpoint)
    file = tmp_path / "model" / SINGLE
    stat = file.stat()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as if nothing had been written: only a read would tell
    assert tensor_digests(checkpoint) == first


def written_in_place(file: Path, data: bytes) -> None:  # rsync --inplace -t
    file.write_bytes(data)


def moved_over(file: Path, data: bytes) -> None:  # rsync -t, cp -p, a build cache
    other = file.with_name("other")
    other.write_bytes(data)
    shutil.copystat(file, other)
    other.replace(file)


@pytest.mark.parametrize("write", [written_in_place, moved_over])
def test_other_bytes_of_the_same_size_and_time_are_read_again(
    write: Callable[[Path, bytes], None], tmp_path: Path
) -> None:
    folder = save_checkpoint(tmp_path / "model", TENSORS)
    first, file = tensor_digests(open_checkpoint(folder)), folder / SINGLE
    before, data = file.stat(), bytearray(file.read_bytes())
    data[-1] ^= 1
    write(file, bytes(data))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert tensor_digests(open_checkpoint(folder)) != first


def test_where_files_have_no_inode_they_are_read_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_checkpoint(tmp_path / "model", TENSORS)
    real = Path.stat

    def without_inode(path: Path, **keywords: bool) -> os.stat_result:  # as some network and FAT file systems answer
        found = list(real(path, **keywords))
        found[1] = 0
        return os.stat_result(found)

    monkeypatch.setattr(Path, "stat", without_inode)
    checkpoint = open_checkpoint(folder)
    assert {info.file.stamp for info in checkpoint.tensors.values()} == {None}
    tensor_digests(checkpoint)
    assert not cache_folder().exists()


def test_a_file_with_another_time_or_size_is_read_again(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "model", TENSORS)
    first = tensor_digests(open_checkpoint(folder))
    save_checkpoint(folder, {**TENSORS, "model.norm.weight": TENSORS["model.norm.weight"] + 1})
    os.utime(folder / SINGLE, ns=(1, 1))
    assert tensor_digests(open_checkpoint(folder)) != first


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b'{"stamp": 1}', b"\xff"])
def test_a_damaged_memory_is_ignored_and_replaced(damage: bytes, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save_checkpoint(tmp_path / "model", TENSORS))
    first = tensor_digests(checkpoint)
    (record,) = (cache_folder() / "digests").iterdir()
    whole = record.read_bytes()
    record.write_bytes(damage)
    assert tensor_digests(checkpoint) == first
    assert record.read_bytes() == whole


def test_a_memory_that_cannot_be_written_costs_nothing_but_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("IMPART_CACHE", str(tmp_path / "file" / "below"))
    checkpoint = open_checkpoint(save_checkpoint(tmp_path / "model", TENSORS))
    assert tensor_digests(checkpoint) == {name: tensor_digest(info) for name, info in checkpoint.tensors.items()}


def test_digests_are_remembered_in_the_folder_that_the_user_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPART_CACHE", "/somewhere")
    assert digests_module.cache_folder() == Path("/somewhere")
    monkeypatch.delenv("IMPART_CACHE")
    assert digests_module.cache_folder().name == "impart"


def test_carried_files_are_digested_by_content(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "model", TENSORS)
    (folder / "tokenizer.json").write_bytes(b"abc")
    found = carried_digests(open_checkpoint(folder))
    assert set(found) == {"config.json", "tokenizer.json"}
    # SHA-256 of "abc", the test vector of FIPS 180-2.
    assert found["tokenizer.json"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
