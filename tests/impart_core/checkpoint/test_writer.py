"""Writing safetensors: readable by the safetensors library, the same bytes each time, folders whole or absent."""

import json
from pathlib import Path
from threading import Event

import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from impart_core.base.parallel import at_once
from impart_core.checkpoint.header import DTYPES, read_header
from impart_core.checkpoint.local import local_file
from impart_core.checkpoint.weights import SHARD_INDEX, SINGLE
from impart_core.checkpoint.writer import (
    TensorSpec,
    spec_of,
    tensor_bytes,
    write_checkpoint,
    write_safetensors,
)

Tensors = dict[str, torch.Tensor]
names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
kinds = st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=3))


def specs_of(tensors: Tensors) -> list[TensorSpec]:
    return [spec_of(name, tensor) for name, tensor in tensors.items()]


@given(wanted=st.dictionaries(names.filter(lambda name: name != "__metadata__"), kinds, max_size=5))
@settings(max_examples=60, deadline=None)
def test_the_safetensors_library_reads_back_what_was_written(
    wanted: dict[str, tuple[str, list[int]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "written.safetensors"
    torch.manual_seed(0)
    tensors = {name: (torch.randn(shape) * 9).to(DTYPES[dtype]) for name, (dtype, shape) in wanted.items()}
    write_safetensors(path, specs_of(tensors), tensors.__getitem__, {"note": "ä"})
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"note": "ä"}
        assert set(file.keys()) == set(tensors)
        for name, tensor in tensors.items():
            read = file.get_tensor(name)
            assert read.dtype == tensor.dtype
            assert torch.equal(read, tensor)


def test_the_order_of_specs_changes_no_byte(tmp_path: Path) -> None:
    tensors: Tensors = {"b": torch.ones(3), "a": torch.zeros(5).half(), "c": torch.arange(2)}
    specs = specs_of(tensors)
    for name, ordered in (("one", specs), ("two", specs[::-1])):
        write_safetensors(tmp_path / name, ordered, tensors.__getitem__, {"y": "1", "x": "2"})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_tensors_that_are_done_in_any_order_lie_where_they_belong(tmp_path: Path) -> None:
    tensors = {name: torch.full((3 + number,), number) for number, name in enumerate("abcd")}
    done = {name: Event() for name in tensors}

    def produce(name: str) -> torch.Tensor:
        if name != "d":  # each waits for the next one, so that the last is done first
            assert done[chr(ord(name) + 1)].wait(10)
        done[name].set()
        return tensors[name]

    with at_once(4):
        write_safetensors(tmp_path / "together", specs_of(tensors), produce, {})
    write_safetensors(tmp_path / "alone", specs_of(tensors), tensors.__getitem__, {})
    assert (tmp_path / "together").read_bytes() == (tmp_path / "alone").read_bytes()


def test_a_file_is_its_length_field_padded_header_and_data_exactly(tmp_path: Path) -> None:
    tensors: Tensors = {"w": torch.arange(3, dtype=torch.int16)}
    write_safetensors(tmp_path / "file", specs_of(tensors), tensors.__getitem__, {})
    header = b'{"w":{"dtype":"I16","shape":[3],"data_offsets":[0,6]}}'
    padded = header + b" " * (-len(header) % 8)
    assert (tmp_path / "file").read_bytes() == (56).to_bytes(8, "little") + padded + b"\0\0\1\0\2\0"


def test_every_tensor_is_aligned_to_its_own_item_size(tmp_path: Path) -> None:
    tensors: Tensors = {name: torch.zeros(3, dtype=dtype) for name, dtype in DTYPES.items()}
    write_safetensors(tmp_path / "file", specs_of(tensors), tensors.__getitem__, {"pad": "xyz"})
    for info in read_header(local_file(tmp_path / "file"))[0].values():
        assert info.start % info.torch_dtype.itemsize == 0


def test_strided_tensors_are_written_by_value(tmp_path: Path) -> None:
    tensor = torch.arange(12.0).reshape(3, 4).T
    write_safetensors(tmp_path / "file", [spec_of("t", tensor)], lambda _: tensor, {})
    assert torch.equal(load_file(tmp_path / "file")["t"], tensor)


def test_a_tensor_other_than_announced_is_a_programming_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="announced"):
        write_safetensors(tmp_path / "file", [TensorSpec("t", "F32", (2,))], lambda _: torch.zeros(3), {})


def test_the_bytes_of_a_tensor_are_little_endian_and_not_copied() -> None:
    tensor = torch.tensor([1, 256], dtype=torch.int16)
    view = tensor_bytes(tensor)
    assert bytes(view) == b"\x01\x00\x00\x01"
    tensor[0] = 2
    assert bytes(view) == b"\x02\x00\x00\x01"
    assert bytes(tensor_bytes(torch.empty(0, 3))) == b""


@pytest.mark.parametrize(("limit", "sizes"), [(10**9, [28]), (16, [16, 12]), (12, [8, 8, 12]), (1, [8, 8, 12])])
def test_shards_hold_at_most_the_limit_and_a_larger_tensor_alone(limit: int, sizes: list[int], tmp_path: Path) -> None:
    tensors: Tensors = {"a": torch.zeros(2), "b": torch.ones(2), "c": torch.zeros(3)}
    files = write_checkpoint(tmp_path, specs_of(tensors), tensors.__getitem__, limit)
    assert [sum(info.nbytes for info in read_header(local_file(file))[0].values()) for file in files] == sizes
    assert {name for file in files for name in read_header(local_file(file))[0]} == set(tensors)


def test_shards_are_named_and_indexed_as_hugging_face_does(tmp_path: Path) -> None:
    tensors: Tensors = {"a": torch.zeros(2), "b": torch.ones(2)}
    files = write_checkpoint(tmp_path, specs_of(tensors), tensors.__getitem__, 8)
    assert [file.name for file in files] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = json.loads((tmp_path / SHARD_INDEX).read_text())
    assert index == {"metadata": {"total_size": 16}, "weight_map": {"a": files[0].name, "b": files[1].name}}
    assert read_header(local_file(files[0]))[1] == {"format": "pt"}


def test_one_shard_has_the_usual_name_and_no_index(tmp_path: Path) -> None:
    tensors: Tensors = {"a": torch.zeros(2)}
    assert write_checkpoint(tmp_path, specs_of(tensors), tensors.__getitem__) == [tmp_path / SINGLE]
    assert [entry.name for entry in tmp_path.iterdir()] == [SINGLE]
