"""Descriptions of packed block files: what they say comes back, and files that lie are refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from impart_core.base.errors import CorruptArtifactError
from impart_core.checkpoint.writer import write_tensors
from impart_core.codec.format import BlockFile
from impart_core.codec.packed import packed_text, read_packed_text
from impart_core.codec.tables import number

HEADER = {"method": "keep", "role": "norm", "shape": [2], "dtype": "BF16"}
PACKED = {"format": 3, "tensors": {"w": {**HEADER, "parts": {"delta": ["F16", [2]]}}}}


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"\xff" * 40,
        packed_text(PACKED),  # no codes
        packed_text(PACKED) + bytes(5),
        packed_text(PACKED)[:-9] + bytes(8),
        packed_text({**PACKED, "format": 2}) + bytes(4),
        packed_text({**PACKED, "format": 4}) + bytes(4),
        packed_text({"format": 3}),
        packed_text({**PACKED, "tensors": {"w": {**HEADER, "parts": {"delta": ["F16", [-2]]}}}}) + bytes(4),
        packed_text({**PACKED, "tensors": {"w": {**HEADER, "parts": {"delta": ["F17", [2]]}}}}) + bytes(4),
        packed_text({**PACKED, "tensors": {"w": {**HEADER, "parts": ["delta"]}}}) + bytes(4),
        b"\x80\x80\x80\x80\x08" + packed_text(PACKED)[1:] + bytes(4),  # claims gigabytes of text
        number(70) + number(19) + b"\xe0" + (1 << 40).to_bytes(8, "little") + bytes(10),  # its frame claims a terabyte
    ],
)
def test_a_packed_file_that_is_no_block_is_refused(record: bytes, tmp_path: Path) -> None:
    data = torch.from_numpy(np.frombuffer(record, dtype=np.uint8).copy())
    write_tensors(tmp_path / "file", {"b": data})
    with pytest.raises(CorruptArtifactError, match=r"block of a compressed delta|format version"):
        BlockFile(tmp_path / "file")


def test_descriptions_come_back_and_end_where_the_codes_begin() -> None:
    data = packed_text(PACKED)
    assert read_packed_text(data + b"more") == (PACKED, len(data))


def test_a_packed_file_is_read(tmp_path: Path) -> None:
    record = packed_text(PACKED) + np.array([1, -2], dtype=np.float16).tobytes()
    write_tensors(tmp_path / "file", {"b": torch.from_numpy(np.frombuffer(record, dtype=np.uint8).copy())})
    assert BlockFile(tmp_path / "file").codes("w")["delta"].tolist() == [1.0, -2.0]
