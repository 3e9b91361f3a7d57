"""The delta: a float32 difference, and nothing that is not a number."""

import pytest
import torch

from impart_core.base.errors import TensorValueError
from impart_core.delta.extract import add_delta, extract_delta


def test_the_delta_is_the_float32_difference_of_the_stored_values() -> None:
    base, finetuned = torch.randn(5, 7).bfloat16(), torch.randn(5, 7).half()
    delta = extract_delta(base, finetuned, "w")
    assert delta.dtype == torch.float32
    exact = finetuned.double() - base.double()
    # Both stored formats are exact in float32, so that the difference is rounded once.
    assert torch.equal(delta, exact.float())


def test_adding_the_delta_to_the_base_gives_the_finetuned_tensor_back() -> None:
    base = torch.randn(64, 64).bfloat16()
    finetuned = (base.float() + 0.01 * torch.randn(64, 64)).bfloat16()
    assert torch.equal((base.float() + extract_delta(base, finetuned, "w")).bfloat16(), finetuned)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_alone_is_no_delta(dtype: torch.dtype) -> None:
    base = torch.randn(16, 16)
    finetuned = base.to(dtype)
    assert not extract_delta(base, finetuned, "w").any()
    finetuned[3] *= 2
    delta = extract_delta(base, finetuned, "w")
    assert delta.any(dim=1).nonzero().flatten().tolist() == [3]
    assert torch.equal((base + delta).to(dtype), finetuned)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(("at", "side"), [(0, "base"), (1, "fine-tuned")])
def test_values_that_are_no_numbers_are_refused_with_tensor_and_side(
    value: float, dtype: torch.dtype, at: int, side: str
) -> None:
    pair = [torch.zeros(3, 4, dtype=dtype), torch.zeros(3, 4, dtype=dtype)]
    pair[at][1, 2] = value
    with pytest.raises(TensorValueError, match=f"'layer.w' of the {side} checkpoint holds NaN or infinity"):
        extract_delta(*pair, "layer.w")


def test_infinities_that_are_equal_on_both_sides_are_refused_too() -> None:
    both = torch.tensor([float("inf")])
    for finetuned in (both, both.half()):
        with pytest.raises(TensorValueError, match="of the base checkpoint"):
            extract_delta(both, finetuned, "w")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_delta_beyond_float32_is_refused(dtype: torch.dtype) -> None:
    huge = torch.tensor([3e38], dtype=dtype)
    with pytest.raises(TensorValueError, match="'w' is beyond float32"):
        extract_delta(-huge, huge, "w")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_what_a_code_takes_beyond_the_dtype_becomes_its_largest_number(dtype: torch.dtype) -> None:
    most = min(torch.finfo(dtype).max, torch.finfo(torch.float32).max)
    base = torch.tensor([most, -most, 1.0], dtype=torch.float64).to(dtype)
    delta = torch.tensor([most / 2, float("-inf"), 2.0])
    assert add_delta(base, delta, dtype).tolist() == [most, -most, 3.0]
