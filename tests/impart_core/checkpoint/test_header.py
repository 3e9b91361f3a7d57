"""Safetensors headers: the same as the safetensors library reads, and hostile ones refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from impart_core.base.errors import CheckpointError
from impart_core.checkpoint.header import DTYPES, read_header
from impart_core.checkpoint.local import local_file


def raw(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    """Write a file with this header, JSON or bytes, and this length field."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(start: Any = 0, end: Any = 8, dtype: Any = "F32", shape: Any = (2,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_a_header_says_what_the_safetensors_library_reads(tmp_path: Path) -> None:
    tensors = {
        "matrix": torch.randn(3, 5).bfloat16(),
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 4),
        "flags": torch.tensor([True, False, True]),
    }
    save_file(tensors, tmp_path / "file", {"format": "pt", "note": "näïve"})
    infos, metadata = read_header(local_file(tmp_path / "file"))
    assert metadata == {"format": "pt", "note": "näïve"}
    data = (tmp_path / "file").read_bytes()
    with safetensors.safe_open(tmp_path / "file", "pt") as file:
        assert set(infos) == set(file.keys())
        for name, info in infos.items():
            ours = file.get_slice(name)
            assert (info.dtype, list(info.shape)) == (ours.get_dtype(), ours.get_shape())
            expected = tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes() if info.numel else b""
            assert data[info.start : info.end] == expected


@pytest.mark.parametrize("name", DTYPES)
def test_every_supported_dtype_has_the_librarys_name_and_size(name: str, tmp_path: Path) -> None:
    save_file({"t": torch.zeros(3, dtype=DTYPES[name])}, tmp_path / "file")
    info = read_header(local_file(tmp_path / "file"))[0]["t"]
    assert (info.dtype, info.torch_dtype, info.nbytes) == (name, DTYPES[name], 3 * DTYPES[name].itemsize)
    assert info.is_floating == name.lstrip("B").startswith("F")


def test_a_file_without_tensors_or_metadata_is_a_file(tmp_path: Path) -> None:
    assert read_header(local_file(raw(tmp_path / "file", {}))) == ({}, {})
    assert read_header(local_file(raw(tmp_path / "file", {"__metadata__": None}))) == ({}, {})


@pytest.mark.parametrize("size", range(8))
def test_a_file_shorter_than_its_length_field_is_refused(size: int, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\0" * size)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        read_header(local_file(tmp_path / "file"))


@pytest.mark.parametrize("length", [3, 10**8 + 1, 2**40, 2**63, 2**64 - 1])
def test_a_length_beyond_the_file_is_refused_before_anything_is_allocated(length: int, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="header is longer than the file"):
        read_header(local_file(raw(tmp_path / "file", {}, length=length)))


@pytest.mark.parametrize("header", [b"", b"{", b"\xff\xfe\xfd", b"[" * 100_000, b'{"a": }', b"9" * 5000])
def test_a_header_that_is_not_json_is_refused(header: bytes, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not JSON"):
        read_header(local_file(raw(tmp_path / "file", header)))


@pytest.mark.parametrize("header", [[], 5, "text", None])
def test_a_header_that_is_no_object_is_refused(header: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a JSON object"):
        read_header(local_file(raw(tmp_path / "file", header)))


@pytest.mark.parametrize("metadata", [5, "abc", [1]])
def test_metadata_that_is_no_object_is_refused(metadata: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="metadata"):
        read_header(local_file(raw(tmp_path / "file", {"__metadata__": metadata})))


MALFORMED = [
    None,
    5,
    [],
    {},
    {"dtype": "F32", "shape": [2]},
    entry(shape=None),
    entry(shape="2"),
    entry(shape=[2.0]),
    entry(shape=[True, 2]),
    entry(shape=[float("inf")]),
    entry(shape=[float("nan")]),
    entry(shape=[2**70, 0], end=0),
    entry(start="0"),
    entry(start=None),
    entry(end=float("inf")),
    {"dtype": "F32", "shape": [2], "data_offsets": [0, 4, 8]},
    {"dtype": "F32", "shape": [2], "data_offsets": 8},
]


@pytest.mark.parametrize("malformed", MALFORMED)
def test_an_entry_of_another_form_is_refused_by_name(malformed: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="entry of tensor 'w' is malformed"):
        read_header(local_file(raw(tmp_path / "file", {"w": malformed}, bytes(8))))


@pytest.mark.parametrize(
    "wrong",
    [
        entry(end=4),
        entry(start=4),
        entry(start=8, end=0),
        entry(start=-8, end=0),
        entry(shape=(-1, -2)),
        entry(shape=(-2,), start=8, end=0),
        entry(dtype="F64"),
        entry(shape=()),
    ],
)
def test_a_byte_range_that_does_not_fit_the_shape_is_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="byte range of tensor 'w' does not fit"):
        read_header(local_file(raw(tmp_path / "file", {"w": wrong}, bytes(16))))


def test_a_file_that_was_cut_short_says_where(tmp_path: Path) -> None:
    data = save({"w": torch.zeros(1000)})
    (tmp_path / "file").write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match=f"cut short: tensor 'w' ends at byte {len(data):,}"):
        read_header(local_file(tmp_path / "file"))


@pytest.mark.parametrize("dtype", ["F8_E4M3", "C64", "f32", "", None])
def test_a_dtype_that_is_not_supported_is_named_with_those_that_are(dtype: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not supported. Supported: F64, F32"):
        read_header(local_file(raw(tmp_path / "file", {"w": entry(dtype=dtype)}, bytes(8))))


@pytest.mark.parametrize(
    ("entries", "size"),
    [
        ({"a": entry(0, 8), "b": entry(0, 8)}, 8),
        ({"a": entry(0, 8), "b": entry(4, 12)}, 12),
        ({"a": entry(0, 8), "b": entry(12, 20)}, 20),
        ({"a": entry(4, 12)}, 12),
        ({"a": entry(0, 8)}, 9),
        ({}, 1),
    ],
    ids=["same bytes", "overlap", "hole", "hole at the start", "bytes after the end", "bytes and no tensor"],
)
def test_tensors_that_do_not_lie_end_to_end_are_refused_as_the_library_does(
    entries: dict[str, Any], size: int, tmp_path: Path
) -> None:
    path = raw(tmp_path / "file", entries, bytes(size))
    with pytest.raises(safetensors.SafetensorError), safetensors.safe_open(path, "pt"):
        pass
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        read_header(local_file(path))


def test_a_missing_file_or_a_folder_is_a_sentence(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "absent", "cannot be read"), (tmp_path, "is no file, but a folder")):
        with pytest.raises(CheckpointError, match=why):
            read_header(local_file(path))


WHOLE = save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(3, dtype=torch.int8)}, {"k": "v"})


@given(position=st.integers(0, len(WHOLE) - 1), byte=st.integers(0, 255))
@settings(max_examples=400, deadline=None)
def test_one_changed_byte_anywhere_gives_a_consistent_header_or_a_sentence(
    position: int, byte: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    data = bytearray(WHOLE)
    data[position] = byte
    path.write_bytes(data)
    try:
        infos, _ = read_header(local_file(path))
    except CheckpointError:
        return
    assert sum(info.nbytes for info in infos.values()) == 6 * 4 + 3
    assert all(info.end <= len(WHOLE) for info in infos.values())
