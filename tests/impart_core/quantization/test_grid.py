"""Grids: they cover their group, hold zero exactly, and are safe for groups of every kind."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from impart_core.quantization.grid import fit_grids

# Of a grid, of any of the sizes that float16 scales are made for.
groups = npst.arrays(np.float32, st.integers(1, 20), elements=st.floats(-65504, 65504, width=32))
widths = st.sampled_from([2, 3, 4, 8])


def grid_of(values: torch.Tensor, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the grids of groups, (groups, size)."""
    return fit_grids(values.amin(dim=-1), values.amax(dim=-1), torch.full((len(values),), float(levels)))


def on_grid(values: torch.Tensor, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the nearest grid points of one group, and the step."""
    scale, zero = grid_of(values[None], levels)
    codes = (torch.round(values / scale.float()) + zero.float()).clamp(0, levels)
    return (codes - zero.float()) * scale.float(), scale


@given(values=groups, bits=widths)
@example(values=np.zeros(3, np.float32), bits=2)
@example(values=np.full(3, 1e-9, np.float32), bits=8)
@example(values=np.full(4, -65504, np.float32), bits=2)
@example(values=np.array([1e-40, -1e-42], np.float32), bits=3)
@example(values=np.array([1e-45], np.float32), bits=8)
@settings(max_examples=300, deadline=None)
def test_every_value_is_at_most_half_a_step_from_the_grid_that_is_stored(values: np.ndarray, bits: int) -> None:
    given_ = torch.from_numpy(values)
    points, scale = on_grid(given_, 2**bits - 1)
    assert scale.dtype == torch.float16
    assert 0 < float(scale) < float("inf")
    # Float32 rounds the quotient, the product and the bound, each to 2⁻²⁴ of values up to 2⁸ steps.
    assert bool(((points - given_).abs() <= 0.5 * scale.float() * (1 + 2**-13)).all())


@given(values=groups, bits=widths)
@settings(deadline=None)
def test_zero_is_on_every_grid(values: np.ndarray, bits: int) -> None:
    points, _ = on_grid(torch.from_numpy(np.append(values, np.float32(0))), 2**bits - 1)
    assert float(points[-1]) == 0


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_ends_of_a_group_have_the_lowest_and_the_highest_code(bits: int) -> None:
    levels = 2**bits - 1
    scale, zero = grid_of(torch.tensor([[-1.0, 2.0], [0.5, 3.0], [-3.0, -1.0]]), levels)
    assert zero.tolist() == [round(levels / 3), 0, levels]
    # A float16 scale is at most one of its steps above the exact one.
    np.testing.assert_allclose(scale.double(), np.full(3, 3 / levels), rtol=2**-10)
    assert bool((scale.double() >= 3 / levels * (1 - 1e-7)).all())


def test_scales_that_float16_cannot_hold_are_the_nearest_that_it_can() -> None:
    scale, zero = grid_of(torch.tensor([[1e-30, -1e-30], [3e38, -3e38]]), 3)
    assert scale.tolist() == [2**-24, 65504]
    assert zero.tolist() == [0, 3]
