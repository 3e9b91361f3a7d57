"""A masked matrix to codes: the three ways to round, along rows as along columns, and what they make of outputs."""

import logging
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.quantization.curvature import Curvature
from impart_core.quantization.gptq import codes_under_mask
from impart_core.quantization.grid import Bits, RowRange
from impart_core.quantization.groups import Groups
from impart_core.quantization.solve import Solver, quantize_matrix
from impart_core.quantization.streams import QuantizedMatrix
from impart_core.quantization.support import codes_on_support
from tests.impart_core.quantization.plain import output_error
from tests.impart_core.quantization.samples import HESSIANS, factor_of, hessian_of, row_ranges

SOLVERS: tuple[Solver, ...] = ("support", "masked", "nearest")
MIXED = (RowRange(0, 2, 8), RowRange(2, 3, 16), RowRange(3, 9, 3))
WHOLE = (RowRange(0, 4, 3),)
solvers = pytest.mark.parametrize("solver", SOLVERS)
calibrated = pytest.mark.parametrize("solver", SOLVERS[:2])


def curvature_of(columns: int, kind: str = "correlated", seed: int = 0) -> Curvature:
    return Curvature.of(hessian_of(kind, columns, seed), "w")


def same(one: QuantizedMatrix, other: QuantizedMatrix) -> bool:
    """Return whether every code, scale and zero point is equal."""
    parts = ((one.codes, other.codes), (one.scales, other.scales), (one.zeros, other.zeros))
    return all(torch.equal(*pair) for pair in parts)


@solvers
@given(data=st.data(), rows=st.integers(1, 6), columns=st.integers(1, 20), seed=st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_codes_of_any_input_are_within_their_bits_on_the_grids_of_their_groups_and_masked_ones_are_zero(
    solver: Solver, data: st.DataObject, rows: int, columns: int, seed: int
) -> None:
    weight, mask = factor_of(rows, columns, data.draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])), seed)
    weight[seed % rows] *= data.draw(st.sampled_from([1.0, 0.0, 1e-20, 1e4]))
    along_rows = data.draw(st.booleans())
    curvature = curvature_of(rows if along_rows else columns, data.draw(st.sampled_from(HESSIANS)), seed)
    groups = Groups(mask, data.draw(row_ranges(rows)), data.draw(st.none() | st.integers(1, 40)))
    before = weight.clone()
    made = quantize_matrix(weight, groups, curvature, "w", solver=solver, along_rows=along_rows)
    assert torch.equal(weight, before)  # what is given is left alone
    kept = torch.where(mask, weight, 0.0)
    for found, expected in zip((made.scales, made.zeros), groups.fit(kept), strict=True):
        assert torch.equal(found, expected)
    values, grid = made.values(), groups.entries(made.scales, made.zeros)
    assert (values.shape, values.dtype) == (weight.shape, torch.float32)
    assert bool(torch.isfinite(values).all())
    assert not values[~mask].any()
    codes = made.codes[mask & ~grid.half]
    assert torch.equal(codes, codes.round())
    assert bool(((codes >= 0) & (codes <= grid.levels[mask & ~grid.half])).all())
    assert torch.equal(values[grid.half], values[grid.half].half().float())
    again = quantize_matrix(weight.clone(), groups, curvature, "w", solver=solver, along_rows=along_rows)
    assert same(again, made)


@solvers
def test_more_bits_come_closer_and_sixteen_are_nearly_the_values(solver: Solver) -> None:
    weight, mask = factor_of(4, 40, 0.6)
    curvature, kept, errors = curvature_of(40), torch.where(mask, weight, 0.0), []
    widths: tuple[Bits, ...] = (2, 3, 4, 8, 16)
    for bits in widths:
        groups = Groups(mask, (RowRange(0, 4, bits),), 16)
        found = quantize_matrix(weight, groups, curvature, "w", solver=solver).values()
        errors.append(output_error(kept, found, curvature.hessian))
    # Twice the levels, a fourth of the error; 16 bits have 11 of significand, but at every size.
    assert all(fine < coarse / 2 for coarse, fine in pairwise(errors))
    if solver == "nearest":
        assert torch.equal(found, kept.half().float())


@calibrated
def test_ranges_of_rows_in_one_call_are_what_they_are_alone(solver: Solver) -> None:
    weight, mask = factor_of(9, 50, 0.7)
    curvature = curvature_of(50)
    together = quantize_matrix(weight, Groups(mask, MIXED, 16), curvature, "w", solver=solver)
    for span in MIXED:
        own = Groups(mask[span.rows], (RowRange(0, span.stop - span.start, span.bits),), 16)
        alone = quantize_matrix(weight[span.rows], own, curvature, "w", solver=solver)
        assert torch.equal(alone.values(), together.values()[span.rows])
        assert torch.equal(alone.codes, together.codes[span.rows])


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_with_nothing_masked_support_and_masked_are_the_same(bits: Bits) -> None:
    weight, mask = factor_of(6, 50)
    groups, curvature = Groups(mask, (RowRange(0, 6, bits),), 16), curvature_of(50)
    grid = groups.entries(*groups.fit(weight))
    one, other = (solve(weight, mask, curvature, grid) for solve in (codes_on_support, codes_under_mask))
    assert one is not None
    assert other is not None
    assert torch.equal(one, other)
    for solver in SOLVERS[:2]:
        assert torch.equal(quantize_matrix(weight, groups, curvature, "w", solver=solver).codes, one)


def test_under_a_mask_rows_at_16_bits_are_the_nearest_float16_of_what_is_wanted_of_them() -> None:
    weight, mask = factor_of(3, 60, 0.5)
    groups, curvature = Groups(mask, (RowRange(0, 1, 16), RowRange(1, 3, 2)), None), curvature_of(60)
    grid = groups.entries(*groups.fit(torch.where(mask, weight, 0.0)))
    solved = codes_under_mask(torch.where(mask, weight, 0.0), mask, curvature, grid)
    assert solved is not None
    row = solved[0]
    assert torch.equal(row, row.half().float())
    assert not row[~mask[0]].any()
    # Errors of 2⁻¹¹ that earlier columns leave are made up for: a few roundings of float16, of the size of the row.
    torch.testing.assert_close(row[mask[0]], weight[0][mask[0]], rtol=0, atol=float(2**-9 * weight[0].abs().max()))


@given(
    rows=st.integers(1, 12), columns=st.integers(1, 12), keep=st.sampled_from([0.3, 0.7, 1.0]), seed=st.integers(0, 9)
)
@settings(max_examples=60, deadline=None)
@solvers
def test_along_rows_it_is_the_transposed_problem(
    solver: Solver, rows: int, columns: int, keep: float, seed: int
) -> None:
    weight, mask = factor_of(rows, columns, keep, seed)
    curvature = curvature_of(rows)
    # One grid for all, so that the transposed matrix has the same.
    along = Groups(mask, (RowRange(0, rows, 3),), None)
    across = Groups(mask.T.contiguous(), (RowRange(0, columns, 3),), None)
    found = quantize_matrix(weight, along, curvature, "w", solver=solver, along_rows=True)
    expected = quantize_matrix(weight.T.contiguous(), across, curvature, "w", solver=solver)
    assert torch.equal(found.values(), expected.values().T)
    assert (found.codes.shape, found.codes.is_contiguous()) == (mask.shape, True)


def test_along_rows_errors_are_made_up_for_across_ranges_of_any_bits() -> None:
    weight, mask = factor_of(9, 30, 0.7)
    groups, curvature = Groups(mask, MIXED, 16), curvature_of(9)
    kept = torch.where(mask, weight, 0.0)
    errors = {
        solver: output_error(
            kept.T,
            quantize_matrix(weight, groups, curvature, "w", solver=solver, along_rows=True).values().T,
            curvature.hessian,
        )
        for solver in SOLVERS
    }
    assert errors["support"] < errors["masked"]
    assert errors["support"] < errors["nearest"]


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("keep", [0.3, 0.6, 1.0])
def test_outputs_differ_least_with_support(keep: float, bits: Bits) -> None:
    weight, mask = factor_of(24, 64, keep)
    groups, curvature = Groups(mask, (RowRange(0, 24, bits),), 32), curvature_of(64)
    kept, errors = torch.where(mask, weight, 0.0), {}
    for solver in SOLVERS:
        values = quantize_matrix(weight, groups, curvature, "w", solver=solver).values()
        errors[solver] = output_error(kept, values, curvature.hessian)
    assert errors["support"] < 0.9 * errors["nearest"]
    assert errors["support"] == errors["masked"] if keep == 1 else errors["support"] < errors["masked"]


@pytest.mark.parametrize("keep", [0.5, 1.0])
def test_without_inputs_or_a_solver_every_value_is_rounded_to_the_nearest(keep: float) -> None:
    weight, mask = factor_of(9, 40, keep)
    groups = Groups(mask, MIXED, 16)
    grid = groups.entries(*groups.fit(weight))
    expected = torch.where(mask, grid.values(grid.nearest(weight)), 0.0)
    for curvature, solver in ((None, "support"), (None, "masked"), (curvature_of(40), "nearest")):
        found = quantize_matrix(weight, groups, curvature, "w", solver=solver)  # type: ignore[arg-type]
        assert torch.equal(found.values(), expected)


@pytest.mark.parametrize("along_rows", [False, True])
@calibrated
def test_a_hessian_of_no_use_is_named_in_a_warning_and_values_are_rounded_to_the_nearest(
    solver: Solver, along_rows: bool, caplog: pytest.LogCaptureFixture
) -> None:
    weight, mask = factor_of(9, 40, 0.5)
    groups, useless = Groups(mask, MIXED, 16), curvature_of(9 if along_rows else 40, "indefinite")
    assert useless.root is None
    with caplog.at_level(logging.WARNING):
        found = quantize_matrix(weight, groups, useless, "layer.w", solver=solver, along_rows=along_rows)
    assert caplog.messages == [
        "layer.w: the Hessian of its inputs is not positive definite, or too near to that, with any damping; "
        "its values are rounded to nearest. More calibration text may help."
    ]
    assert torch.equal(found.values(), quantize_matrix(weight, groups, None, "layer.w").values())


SOUND = Curvature.of(torch.eye(2), "w")


@pytest.mark.parametrize(
    ("solver", "torn"),
    [
        ("masked", replace(SOUND, root=torch.tensor([[1.0, 1e38], [0.0, 1e-6]]))),  # its inverse is infinite
        ("support", replace(SOUND, hessian=torch.tensor([[1.0, 2.0], [2.0, 1.0]]))),  # it has no root
        ("support", replace(SOUND, hessian=torch.tensor([[1e37, 0.9], [0.9, 1e-37]]), added=0.0)),  # 1e37 times w
    ],
)
def test_a_factor_that_turns_out_to_be_of_no_use_is_noticed_in_time(
    solver: Solver, torn: Curvature, caplog: pytest.LogCaptureFixture
) -> None:
    weight, mask = factor_of(4, 2)
    mask[0, 1] = False  # a mask that keeps everything is worked on as a whole
    groups = Groups(mask, WHOLE, None)
    found = quantize_matrix(weight * 2e4, groups, torn, "w", solver=solver)
    assert same(found, quantize_matrix(weight * 2e4, groups, None, "w"))
    assert len(caplog.messages) == 1


@calibrated
def test_values_that_are_pushed_beyond_float16_are_its_largest(solver: Solver) -> None:
    values = torch.tensor([[65487.0, 65504.0, 0.0]])  # rounds to 65472, which the other has to make up for
    hessian = torch.eye(3)
    hessian[:2, :2] = torch.tensor([[100.0, 9.9], [9.9, 1.0]])
    groups, curvature = Groups(values > 0, (RowRange(0, 1, 16),), None), Curvature.of(hessian, "w")
    assert curvature.root is not None
    assert quantize_matrix(values, groups, curvature, "w", solver=solver).values().tolist() == [[65472, 65504, 0]]


@calibrated
def test_columns_that_no_input_reaches_are_rounded_to_the_nearest(solver: Solver) -> None:
    weight, mask = factor_of(4, 12, 0.8)
    groups = Groups(mask, WHOLE, None)
    found = quantize_matrix(weight, groups, curvature_of(12, "dead columns"), "w", solver=solver).values()
    nearest = quantize_matrix(weight, groups, None, "w").values()
    assert torch.equal(found[:, ::3], nearest[:, ::3])
    assert not torch.equal(found, nearest)


@pytest.mark.parametrize("kind", ["rank deficient", "dead columns", "zero"])
@solvers
def test_a_hessian_that_damping_helps_gives_finite_codes_without_a_warning(
    kind: str, solver: Solver, caplog: pytest.LogCaptureFixture
) -> None:
    weight, mask = factor_of(9, 40, 0.5)
    found = quantize_matrix(weight, Groups(mask, MIXED, 16), curvature_of(40, kind), "w", solver=solver)
    assert bool(torch.isfinite(found.values()).all())
    assert not caplog.messages


@solvers
def test_what_is_masked_may_be_anything(solver: Solver) -> None:
    weight, mask = factor_of(9, 40, 0.5)
    groups, curvature = Groups(mask, MIXED, 16), curvature_of(40)
    expected = quantize_matrix(torch.where(mask, weight, 0.0), groups, curvature, "w", solver=solver)
    found = quantize_matrix(torch.where(mask, weight, 1e30), groups, curvature, "w", solver=solver)
    assert torch.equal(found.values(), expected.values())
    assert torch.equal(found.scales, expected.scales)


@solvers
@pytest.mark.parametrize("along_rows", [False, True])
def test_where_nothing_is_kept_there_is_nothing(solver: Solver, along_rows: bool) -> None:
    groups = Groups(torch.zeros(9, 40, dtype=torch.bool), MIXED, 16)
    curvature = curvature_of(9 if along_rows else 40)
    made = quantize_matrix(torch.ones(9, 40), groups, curvature, "w", solver=solver, along_rows=along_rows)
    assert not made.values().any()
    assert len(made.scales) == len(made.zeros) == 0
