"""A projection gives a method what it asks for, and works out nothing else."""

from typing import Any

import pytest
import torch

from impart_core.base.errors import ConfigError
from impart_core.delta.svd import decompose
from impart_core.methods.base import Projection
from tests.support import decaying_delta


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


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ([1.0], "'w' is \\[1.0\\], a list. Give a tensor"),
        (torch.ones(3), "'w' has the shape \\[3\\]"),
        (torch.ones(0, 9), "'w' has the shape \\[0, 9\\]"),
    ],
)
def test_what_is_no_matrix_with_entries_is_refused(given: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Projection.of(given, "w")
