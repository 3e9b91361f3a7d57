"""Checkpoint folders as an index, and folders that do not hold together."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from impart_core.base.errors import CheckpointError
from impart_core.checkpoint.index import open_checkpoint
from impart_core.checkpoint.weights import SHARD_INDEX, SINGLE
from tests.support import llama_shapes, random_tensors, save_checkpoint, weight_files


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    return random_tensors(llama_shapes(layers=1))


def test_a_folder_is_indexed_with_every_tensor_sorted_and_its_config(
    tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(save_checkpoint(tmp_path / "model", tensors, {"vocab_size": 40}))
    assert list(checkpoint.tensors) == sorted(tensors)
    assert {name: info.shape for name, info in checkpoint.tensors.items()} == llama_shapes(layers=1)
    assert checkpoint.config["vocab_size"] == 40
    assert weight_files(checkpoint) == [str(tmp_path / "model" / SINGLE)]


def test_shards_give_the_same_index_as_one_file(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    single = open_checkpoint(save_checkpoint(tmp_path / "single", tensors))
    sharded = open_checkpoint(save_checkpoint(tmp_path / "sharded", tensors, max_shard_bytes=4000))
    assert len(weight_files(sharded)) > 2
    assert [(i.name, i.dtype, i.shape) for i in sharded.tensors.values()] == [
        (i.name, i.dtype, i.shape) for i in single.tensors.values()
    ]


def test_its_bytes_are_those_of_the_files_that_belong_to_it(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "model", tensors, max_shard_bytes=4000)
    (folder / "tokenizer.json").write_text("{}")
    counted = sum(file.stat().st_size for file in folder.iterdir())
    (folder / "README.md").write_text("not part of the model")
    checkpoint = open_checkpoint(folder)
    assert checkpoint.nbytes == counted
    assert set(checkpoint.carried) == {"config.json", "tokenizer.json"}


def test_a_tensor_in_two_shards_is_refused_with_both_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for name in ("one.safetensors", "two.safetensors"):
        save_file({"twice": torch.zeros(2), name: torch.zeros(2)}, tmp_path / name)
    weight_map = {name: name for name in ("one.safetensors", "two.safetensors")}
    (tmp_path / SHARD_INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"'twice' is in both .*one.safetensors and .*two.safetensors"):
        open_checkpoint(tmp_path)


def test_an_absent_folder_a_file_and_a_folder_without_config_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, why in ((tmp_path / "absent", "does not exist"), (tmp_path / "file", "is a file")):
        with pytest.raises(CheckpointError, match=why):
            open_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"has no config.json \(it holds file\)"):
        open_checkpoint(tmp_path)


def test_a_pickled_checkpoint_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no weights at all"):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin, which is a pickle.*safe_serialization=True"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "[" * 100_000, "\udcff"])
def test_a_config_that_is_no_json_object_is_refused(text: str, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / SINGLE)
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=r"config.json (cannot be read as JSON|is not a JSON object)"):
        open_checkpoint(tmp_path)


def test_files_without_tensors_are_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file({}, tmp_path / SINGLE)
    with pytest.raises(CheckpointError, match="hold no tensors"):
        open_checkpoint(tmp_path)


def sharded(folder: Path, weight_map: object) -> Path:
    """Make a folder with one shard, holding `a`, and this weight map."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file({"a": torch.zeros(2)}, folder / "shard.safetensors")
    (folder / SHARD_INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize(
    ("weight_map", "why"),
    [
        (None, "no weight_map"),
        ({}, "no weight_map"),
        (["a"], "no weight_map"),
        ({"a": "gone.safetensors"}, "gone.safetensors, which is missing"),
        ({"a": "../model/shard.safetensors"}, "not a file of its own folder"),
        ({"a": "/etc/passwd"}, "not a file of its own folder"),
        ({"a": ".."}, "missing"),
        ({"a": "shard.safetensors", "b": "shard.safetensors"}, "lists 1 tensors that no shard holds, first 'b'"),
    ],
)
def test_a_shard_index_that_does_not_hold_together_is_refused(weight_map: object, why: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=why):
        open_checkpoint(sharded(tmp_path / "model", weight_map))


def test_an_index_cannot_be_changed(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save_checkpoint(tmp_path / "model", tensors))
    with pytest.raises(TypeError):
        checkpoint.tensors["new"] = None  # type: ignore[index]
