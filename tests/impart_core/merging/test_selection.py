"""Selection finds the entries that a stable sort puts first."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from impart_core.merging.blocks import blocks
from impart_core.merging.selection import largest, smallest
from tests.pretend_device import PRETEND

# Few different values: most thresholds have equals.
tensors = st.lists(st.sampled_from([-2.0, -1.0, -0.0, 0.0, 2.0**-140, 0.5, 1.0, 2.0]), min_size=1, max_size=30)


@given(tensors, st.integers(0, 35), st.integers(5, 17), st.booleans())
def test_the_largest_are_those_that_a_stable_sort_puts_first(
    values: list[float], count: int, step: int, elsewhere: bool
) -> None:
    tensor = torch.tensor(values)
    there = tensor.to(PRETEND) if elsewhere else tensor
    found = largest(there, count)
    mask = torch.cat([found.mask(there[start : start + step], start).cpu() for start in range(0, len(values), step)])
    expected = np.zeros(len(values))
    expected[np.argsort(-np.abs(tensor.numpy()), kind="stable")[:count]] = 1
    assert mask.tolist() == expected.tolist()
    assert tensor.tolist() == values


def test_coarse_values_as_those_of_bfloat16_have_many_equals() -> None:
    tensor = torch.randn(100, 1000, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    found, flat = largest(tensor, 40_000), tensor.flatten()
    mask = torch.cat([found.mask(flat[block], block.start) for block in blocks(tensor)]).numpy()
    expected = np.argsort(-np.abs(flat.numpy()), kind="stable")[:40_000]
    assert sorted(expected) == np.flatnonzero(mask).tolist()


@given(st.lists(st.floats(0, 2.0**100, width=32), min_size=1, max_size=40), st.data())
def test_a_place_holds_what_sorting_brings_there(values: list[float], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(values) - 1))
    assert smallest(torch.tensor(values), place) == sorted(values)[place]
