"""Changed rows: their numbers and values, and nothing of the others."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.base.errors import CorruptArtifactError, TensorValueError
from impart_core.codec.rows import decode_rows, encode_rows, rows_bytes


@st.composite
def sparse_deltas(draw: st.DrawFn) -> torch.Tensor:
    """Draw a delta of which some rows are zero."""
    m, n = draw(st.integers(0, 12)), draw(st.integers(1, 9))
    generator = np.random.default_rng(draw(st.integers(0, 999)))
    changed = generator.random(m) < draw(st.floats(0, 1))
    return torch.from_numpy(generator.standard_normal((m, n)) * changed[:, None]).float()


@given(delta=sparse_deltas())
@settings(max_examples=100, deadline=None)
def test_rows_come_back_as_float16_holds_them_in_exactly_the_bytes_that_were_said(delta: torch.Tensor) -> None:
    codes = encode_rows(delta, "w")
    changed = [number for number, row in enumerate(delta.tolist()) if any(row)]
    assert codes["rows"].tolist() == changed
    assert (codes["rows"].dtype, codes["values"].dtype) == (torch.int32, torch.float16)
    assert sum(code.numel() * code.element_size() for code in codes.values()) == rows_bytes(delta) - (
        "exponent" not in codes
    )
    assert rows_bytes(delta) == len(changed) * (4 + 2 * delta.shape[1]) + 1
    found = decode_rows(codes, "w", tuple(delta.shape))
    torch.testing.assert_close(found, delta, rtol=2**-11, atol=2**-30)


def test_a_row_with_one_changed_entry_is_stored_whole() -> None:
    delta = torch.zeros(5, 4)
    delta[3, 2] = 0.5
    codes = encode_rows(delta, "w")
    assert codes["rows"].tolist() == [3]
    assert codes["values"].tolist() == [[0, 0, 2**14, 0]]
    assert torch.equal(decode_rows(codes, "w", (5, 4)), delta)


def test_values_beyond_float16_are_stored_too_and_those_of_format_1_are_read() -> None:
    delta = torch.tensor([[0.0, 0.0], [1.0, 131072.0]])
    codes = encode_rows(delta, "w")
    assert torch.equal(decode_rows(codes, "w", (2, 2)), delta)
    old = {"rows": codes["rows"], "values": delta[1:].bfloat16()}
    assert torch.equal(decode_rows(old, "w", (2, 2)), delta)
    with pytest.raises(TensorValueError, match="delta of 'w' holds NaN or infinity"):
        encode_rows(torch.tensor([[float("inf")]]), "w")


ROWS, VALUES = torch.tensor([1, 4], dtype=torch.int32), torch.ones(2, 3).half()


@pytest.mark.parametrize(
    ("rows", "values"),
    [
        ([1, 5], VALUES),
        ([-1, 4], VALUES),
        ([4, 1], VALUES),
        ([4, 4], VALUES),
        ([1], VALUES),
        ([], VALUES),
        ([1, 4], VALUES[:, :2]),
        ([1, 4], VALUES[0]),
        ([1, 4], VALUES[None]),
        ([[1], [4]], VALUES),
        (1, VALUES[:1]),
        ([1.0, 4.0], VALUES),
        ([2**31 - 1, -(2**31)], VALUES),
    ],
)
def test_rows_that_the_tensor_does_not_have_or_not_in_order_are_refused(rows: object, values: torch.Tensor) -> None:
    given_ = torch.tensor(rows)
    codes = {"rows": given_ if given_.is_floating_point() and given_.numel() else given_.int(), "values": values}
    with pytest.raises(CorruptArtifactError, match="'w'"):
        decode_rows(codes, "w", (5, 3))
    assert torch.equal(decode_rows({"rows": ROWS, "values": VALUES}, "w", (5, 3))[ROWS.long()], VALUES.float())


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32])
def test_row_numbers_of_another_dtype_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(CorruptArtifactError, match=r"expected torch\.int32"):
        decode_rows({"rows": ROWS.to(dtype), "values": VALUES}, "w", (5, 3))


def test_a_tensor_of_no_rows_has_a_delta_of_no_rows() -> None:
    codes = encode_rows(torch.zeros(0, 3), "w")
    assert decode_rows(codes, "w", (0, 3)).shape == (0, 3)
