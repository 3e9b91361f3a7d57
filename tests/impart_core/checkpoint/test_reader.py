"""Reading one tensor at a time, and files that change meanwhile."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from impart_core.base.errors import CheckpointError
from impart_core.checkpoint.header import DTYPES, read_header
from impart_core.checkpoint.local import local_file
from impart_core.checkpoint.reader import read_tensor, tensor_digest


@given(dtype=st.sampled_from(sorted(DTYPES)), shape=st.lists(st.integers(0, 5), max_size=3), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_tensor_is_read_bit_for_bit_as_the_safetensors_library_does(
    dtype: str, shape: list[int], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "read.safetensors"
    torch.manual_seed(seed)
    values = torch.randint(0, 2, shape) if dtype == "BOOL" else torch.randn(shape) * 50
    save_file({"t": values.to(DTYPES[dtype]), "u": torch.ones(3)}, path)
    read = read_tensor(read_header(local_file(path))[0]["t"])
    expected = load_file(path)["t"]
    assert (read.dtype, read.shape) == (expected.dtype, expected.shape)
    assert torch.equal(read, expected)


def test_what_was_read_is_the_readers_own_memory(tmp_path: Path) -> None:
    save_file({"t": torch.zeros(4)}, tmp_path / "file")
    info = read_header(local_file(tmp_path / "file"))[0]["t"]
    read_tensor(info).add_(1)
    assert torch.equal(read_tensor(info), torch.zeros(4))


def test_a_digest_is_of_content_and_not_of_place(tmp_path: Path) -> None:
    tensor = torch.randn(3, 4)
    save_file({"a": tensor}, tmp_path / "one")
    save_file({"b": tensor, "other": torch.ones(7)}, tmp_path / "two")
    one, two = read_header(local_file(tmp_path / "one"))[0]["a"], read_header(local_file(tmp_path / "two"))[0]["b"]
    assert tensor_digest(one) == tensor_digest(two)


def test_equal_bytes_of_another_shape_or_dtype_have_another_digest(tmp_path: Path) -> None:
    variants = {
        "f32": torch.zeros(2, 3),
        "shape": torch.zeros(3, 2),
        "flat": torch.zeros(6),
        "i32": torch.zeros(2, 3, dtype=torch.int32),
    }
    save_file(variants, tmp_path / "file")
    assert len({tensor_digest(info) for info in read_header(local_file(tmp_path / "file"))[0].values()}) == 4


def test_a_tensor_whose_digest_is_expected_is_returned_and_another_refused(tmp_path: Path) -> None:
    save_file({"t": torch.ones(4)}, tmp_path / "file")
    info = read_header(local_file(tmp_path / "file"))[0]["t"]
    digest = tensor_digest(info)
    assert torch.equal(read_tensor(info, digest), torch.ones(4))
    save_file({"t": torch.full((4,), 2.0)}, tmp_path / "file")
    with pytest.raises(CheckpointError, match=r"was changed while it was in use .tensor 't'."):
        read_tensor(info, digest)


def test_a_file_that_became_shorter_or_vanished_is_refused(tmp_path: Path) -> None:
    save_file({"t": torch.ones(100)}, tmp_path / "file")
    info = read_header(local_file(tmp_path / "file"))[0]["t"]
    (tmp_path / "file").write_bytes((tmp_path / "file").read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="became shorter"):
        read_tensor(info)
    (tmp_path / "file").unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_tensor(info)
