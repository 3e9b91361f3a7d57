"""Groups of kept entries: those of the field where nothing is masked, and a grid near what is kept under any mask."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.quantization.grid import Bits, RowRange, fit_grids
from impart_core.quantization.groups import Groups, group_count
from tests.impart_core.quantization.samples import factor_of, row_ranges

sizes = st.none() | st.integers(1, 70)
keeps = st.sampled_from([0.0, 0.05, 0.3, 0.9, 1.0])


@st.composite
def grouped(draw: st.DrawFn) -> tuple[torch.Tensor, Groups]:
    """Draw a matrix, and groups of what a mask keeps of it: of some rows nothing, at times."""
    rows, columns = draw(st.integers(1, 8)), draw(st.integers(1, 30))
    values, mask = factor_of(rows, columns, draw(keeps), draw(st.integers(0, 99)))
    mask &= torch.tensor([draw(st.booleans() | st.just(value=True)) for _ in range(rows)])[:, None]
    return values, Groups(mask, draw(row_ranges(rows)), draw(sizes))


@given(rows=st.integers(1, 5), per_row=st.integers(1, 4), size=st.integers(1, 20), bits=st.sampled_from([2, 3, 4, 8]))
@settings(max_examples=60, deadline=None)
def test_of_a_whole_matrix_they_are_groups_of_columns(rows: int, per_row: int, size: int, bits: Bits) -> None:
    values, mask = factor_of(rows, per_row * size)
    scales, zeros = Groups(mask, (RowRange(0, rows, bits),), size).fit(values)
    of_columns = values.reshape(rows * per_row, size)
    levels = torch.full((rows * per_row,), 2.0**bits - 1)
    expected = fit_grids(of_columns.amin(dim=1), of_columns.amax(dim=1), levels)
    assert torch.equal(scales, expected[0])
    assert torch.equal(zeros, expected[1])
    assert (scales.dtype, zeros.dtype) == (torch.float16, torch.uint8)


def listed(groups: Groups) -> list[tuple[RowRange, list[tuple[int, int]]]]:
    """Return the kept entries of each group in scan order, counted out one by one."""
    found = []
    for span in groups.ranges:
        kept = [(i, j) for i in range(span.start, span.stop) for j in groups.mask[i].nonzero()[:, 0].tolist()]
        size = groups.size or max(1, len(kept))
        cut = [kept[first : first + size] for first in range(0, len(kept), size)]
        found += [(span, group) for group in cut if span.bits != 16]
    return found


@given(drawn=grouped())
@settings(max_examples=150, deadline=None)
def test_each_group_has_the_grid_of_its_own_entries_in_scan_order(drawn: tuple[torch.Tensor, Groups]) -> None:
    values, groups = drawn
    scales, zeros = groups.fit(values)
    expected = listed(groups)
    assert len(scales) == len(zeros) == sum(groups.counts) == len(expected)
    entries = groups.entries(scales, zeros)
    for (span, group), scale, zero in zip(expected, scales, zeros, strict=True):
        kept = torch.stack([values[at] for at in group])
        own = fit_grids(kept.min(), kept.max(), torch.tensor(float(span.levels)))
        assert (float(scale), int(zero)) == (float(own[0]), int(own[1]))
        assert {float(entries.scales[at]) for at in group} == {float(scale)}
        assert {float(entries.zeros[at]) for at in group} == {float(zero)}
    for span in groups.ranges:
        assert bool((entries.levels[span.rows] == 2**span.bits - 1).all())
        assert bool((entries.half[span.rows] == (span.bits == 16)).all())
    unused = ~groups.mask | entries.half
    assert bool((entries.scales[unused] == 1).all())
    assert bool((entries.zeros[unused] == 0).all())


@given(drawn=grouped())
@settings(max_examples=150, deadline=None)
def test_every_kept_value_is_at_most_half_a_step_from_its_grid(drawn: tuple[torch.Tensor, Groups]) -> None:
    values, groups = drawn
    grid = groups.entries(*groups.fit(values))
    found = grid.values(grid.nearest(values))
    on_grid = groups.mask & ~grid.half
    # Float32 rounds the quotient, the product and the bound, each to 2⁻²⁴ of values up to 2⁸ steps.
    assert bool(((found - values).abs() <= 0.5 * grid.scales * (1 + 2**-13))[on_grid].all())
    assert torch.equal(found[grid.half], values[grid.half].half().float())


@given(drawn=grouped())
@settings(max_examples=40, deadline=None)
def test_masked_values_play_no_part(drawn: tuple[torch.Tensor, Groups]) -> None:
    values, groups = drawn
    other = torch.where(groups.mask, values, 1000.0)
    for one, another in zip(groups.fit(values), groups.fit(other), strict=True):
        assert torch.equal(one, another)


def test_in_figures_a_range_that_keeps_nothing_or_has_16_bits_has_no_group() -> None:
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0], [1, 1, 1]]).bool()
    ranges = (RowRange(0, 2, 4), RowRange(2, 3, 8), RowRange(3, 4, 16))
    for size, counts in ((None, (1, 0, 0)), (1, (5, 0, 0)), (2, (3, 0, 0)), (5, (1, 0, 0)), (9, (1, 0, 0))):
        groups = Groups(mask, ranges, size)
        assert groups.kept == (5, 0, 3)
        assert groups.counts == counts
        assert [len(part) for part in groups.fit(torch.ones(4, 3))] == [sum(counts)] * 2
    # Of two rows with three and two kept entries, the second group takes the first row's last and the second's first.
    scales, _ = Groups(mask, ranges, 2).fit(torch.tensor([[3.0, 6, 15], [30, 45, 99], [0, 0, 0], [9, 9, 9]]))
    torch.testing.assert_close(scales.float(), torch.tensor([6 / 15, 30 / 15, 45 / 15]), rtol=2**-10, atol=0)


@pytest.mark.parametrize(
    ("kept", "bits", "size", "count"),
    [(0, 2, 4, 0), (0, 2, None, 0), (1, 2, 4, 1), (4, 2, 4, 1), (5, 2, 4, 2), (5, 2, None, 1), (5, 16, 4, 0)],
)
def test_groups_are_counted_without_a_mask(kept: int, bits: Bits, size: int | None, count: int) -> None:
    assert group_count(kept, RowRange(0, 3, bits), size) == count
