"""A projection gives a method what it asks for, and works out nothing else."""

import pytest
import torch

from impart_core.base.errors import CorruptArtifactError
from impart_core.codec.parts import read_part
from impart_core.delta.svd import decompose
from impart_core.methods.base import Projection
from tests.support import decaying_delta

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_projection_of_a_delta_gives_its_name_shape_delta_and_decomposition() -> None:
    delta = decaying_delta(6, 9)
    projection, expected = Projection.of(delta, "layer.w"), decompose(delta, "layer.w")
    assert (projection.name, projection.shape) == ("layer.w", (6, 9))
    assert torch.equal(projection.delta(), delta)
    factors = projection.factors()
    assert torch.equal(factors.u, expected.u)
    assert torch.equal(factors.sigma, expected.sigma)
    assert torch.equal(factors.v, expected.v)


def test_a_delta_at_16_bits_is_given_in_float32() -> None:
    assert Projection.of(torch.ones(2, 3).bfloat16(), "w").delta().dtype == torch.float32


def test_a_part_of_the_codes_is_given_when_its_dtype_and_shape_are_right() -> None:
    part = torch.ones(3, 4).half()
    assert read_part({"u": part}, "w", "u", torch.float16, None, 4) is part


@pytest.mark.parametrize(
    ("part", "dtype", "shape"),
    [
        ("v", torch.float16, (3, 4)),
        ("u", torch.float32, (3, 4)),
        ("u", torch.float16, (3, 5)),
        ("u", torch.float16, (None,)),
        ("u", torch.float16, (3, 4, None)),
    ],
)
def test_a_part_that_is_missing_or_another_tensor_is_refused_by_name(
    part: str, dtype: torch.dtype, shape: tuple[int | None, ...]
) -> None:
    with pytest.raises(CorruptArtifactError, match=f"codes of 'w' .*'{part}'|'{part}' of the codes of 'w'"):
        read_part({"u": torch.ones(3, 4).half()}, "w", part, dtype, *shape)
