"""Values at 16 bits: the nearest ones, or an error that names the tensor."""

import pytest
import torch

from impart_core.base.errors import TensorValueError
from impart_core.codec.half import to_half


def test_values_are_stored_to_the_nearest_of_float16() -> None:
    stored = to_half(torch.tensor([0.1, -65504.0, 1e-9]), "w")
    assert stored.dtype == torch.float16
    # Half a step of float16 around 0.1, and nothing left below half of its smallest number, 6e-8.
    assert stored.tolist() == [pytest.approx(0.1, abs=2**-15), -65504.0, 0.0]
    assert to_half(torch.empty(0), "w").shape == (0,)


@pytest.mark.parametrize("value", [1e5, -7e4, float("inf")])
def test_a_value_beyond_float16_is_refused_with_the_tensors_name(value: float) -> None:
    with pytest.raises(TensorValueError, match=r"delta of 'layer.w' reaches .*, beyond the 65504"):
        to_half(torch.tensor([0.1, value]), "layer.w")
