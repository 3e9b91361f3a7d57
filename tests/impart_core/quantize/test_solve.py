"""A masked matrix to codes: the three ways to round, along rows as along columns, and what they make of outputs."""

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.quantize.curvature import Curvature, output_error
from impart_core.quantize.gptq import GptqOptions, codes_under_mask, sparse_gptq
from impart_core.quantize.grid import Bits, RowRange
from impart_core.quantize.groups import Groups
from impart_core.quantize.result import GridOptions
from impart_core.quantize.solve import Solver, quantize_matrix
from impart_core.quantize.support import codes_on_support, support_gptq
from tests.impart_core.quantize.samples import factor_of, hessian_of

pytestmark = pytest.mark.usefixtures("one_thread")

SOLVERS: tuple[Solver, ...] = ("support", "masked", "nearest")
MIXED = (RowRange(0, 2, 8), RowRange(2, 3, 16), RowRange(3, 9, 3))
LADDER = tuple(RowRange(row, row + 1, bits) for row, bits in enumerate((16, 8, 4, 3, 2, 2)))


def curvature_of(columns: int, kind: str = "correlated") -> Curvature:
    return Curvature.of(hessian_of(kind, columns), "w")


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_is_stored_is_what_the_groups_fit_whatever_the_solver(solver: Solver) -> None:
    weight, mask = factor_of(9, 40, 0.5)
    groups = Groups(mask, MIXED, 16)
    made = quantize_matrix(weight, groups, curvature_of(40), "w", solver=solver)
    for found, expected in zip((made.scales, made.zeros), groups.fit(weight), strict=True):
        assert torch.equal(found, expected)
    grid = groups.entries(made.scales, made.zeros)
    codes = made.codes[mask & ~grid.half]
    assert torch.equal(codes, codes.round())
    assert bool(((codes >= 0) & (codes <= grid.levels[mask & ~grid.half])).all())
    assert torch.equal(made.values()[2], made.values()[2].half().float())
    assert not made.values()[~mask].any()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_with_nothing_masked_support_and_masked_are_the_same(bits: Bits) -> None:
    weight, mask = factor_of(6, 50)
    groups, curvature = Groups(mask, (RowRange(0, 6, bits),), 16), curvature_of(50)
    grid = groups.entries(*groups.fit(weight))
    one, other = (solve(weight, mask, curvature, grid) for solve in (codes_on_support, codes_under_mask))
    assert one is not None
    assert other is not None
    assert torch.equal(one[0], other[0])
    assert one[1] == pytest.approx(other[1], rel=1e-4)  # sums in float32
    for solver in SOLVERS[:2]:
        assert torch.equal(quantize_matrix(weight, groups, curvature, "w", solver=solver).codes, one[0])


@pytest.mark.parametrize("keep", [0.4, 1.0])
def test_rows_with_grids_of_their_own_are_those_of_sparse_gptq_and_of_support_gptq(keep: float) -> None:
    weight, mask = factor_of(6, 50, keep)
    curvature = curvature_of(50)
    groups = Groups(mask, LADDER, None)
    found = {solver: quantize_matrix(weight, groups, curvature, "w", solver=solver).values() for solver in SOLVERS}
    masked = sparse_gptq(weight, mask, curvature, LADDER, "w", GptqOptions(static_groups=True)).weight
    support = support_gptq(weight, mask, curvature, LADDER, "w", GridOptions(static_groups=True)).weight
    expected = {"masked": masked, "support": masked if keep == 1 else support}
    for solver, values in expected.items():
        torch.testing.assert_close(found[solver], values, rtol=0, atol=0)  # type: ignore[index]
    if keep < 1:
        assert not torch.equal(found["masked"], found["support"])


def test_under_a_mask_rows_at_16_bits_are_the_nearest_float16_of_what_is_wanted_of_them() -> None:
    weight, mask = factor_of(3, 60, 0.5)
    groups, curvature = Groups(mask, (RowRange(0, 1, 16), RowRange(1, 3, 2)), None), curvature_of(60)
    grid = groups.entries(*groups.fit(torch.where(mask, weight, 0.0)))
    solved = codes_under_mask(torch.where(mask, weight, 0.0), mask, curvature, grid)
    assert solved is not None
    row = solved[0][0]
    assert torch.equal(row, row.half().float())
    assert not row[~mask[0]].any()
    # Errors of 2⁻¹¹ that earlier columns leave are made up for: a few roundings of float16, of the size of the row.
    torch.testing.assert_close(row[mask[0]], weight[0][mask[0]], rtol=0, atol=float(2**-9 * weight[0].abs().max()))


@given(
    rows=st.integers(1, 12), columns=st.integers(1, 12), keep=st.sampled_from([0.3, 0.7, 1.0]), seed=st.integers(0, 9)
)
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("solver", SOLVERS)
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
@pytest.mark.parametrize("solver", SOLVERS[:2])
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


@pytest.mark.parametrize("kind", ["rank deficient", "dead columns", "zero"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_hessian_that_damping_helps_gives_finite_codes_without_a_warning(
    kind: str, solver: Solver, caplog: pytest.LogCaptureFixture
) -> None:
    weight, mask = factor_of(9, 40, 0.5)
    found = quantize_matrix(weight, Groups(mask, MIXED, 16), curvature_of(40, kind), "w", solver=solver)
    assert bool(torch.isfinite(found.values()).all())
    assert not caplog.messages


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_is_masked_may_be_anything(solver: Solver) -> None:
    weight, mask = factor_of(9, 40, 0.5)
    groups, curvature = Groups(mask, MIXED, 16), curvature_of(40)
    expected = quantize_matrix(torch.where(mask, weight, 0.0), groups, curvature, "w", solver=solver)
    found = quantize_matrix(torch.where(mask, weight, 1e30), groups, curvature, "w", solver=solver)
    assert torch.equal(found.values(), expected.values())
    assert torch.equal(found.scales, expected.scales)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("along_rows", [False, True])
def test_where_nothing_is_kept_there_is_nothing(solver: Solver, along_rows: bool) -> None:
    groups = Groups(torch.zeros(9, 40, dtype=torch.bool), MIXED, 16)
    curvature = curvature_of(9 if along_rows else 40)
    made = quantize_matrix(torch.ones(9, 40), groups, curvature, "w", solver=solver, along_rows=along_rows)
    assert not made.values().any()
    assert len(made.scales) == len(made.zeros) == 0
