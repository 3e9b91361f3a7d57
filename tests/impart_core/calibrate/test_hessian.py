"""Hessians: how they are summed up, and how far those of few tokens are believed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.base.parallel import at_once
from impart_core.calibrate.hessian import Hessian, add_product, mirror, shrink, shrink_together, shrinkage
from impart_core.quantization.curvature import Curvature
from impart_core.quantization.grid import Bits, RowRange
from impart_core.quantization.groups import Groups
from impart_core.quantization.solve import quantize_matrix


def total_of(side: int, tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows, and the sum of their product and of half of their product."""
    rows = torch.randn(tokens, side, generator=torch.Generator().manual_seed(seed))
    total = torch.zeros(side, side)
    add_product(total, rows)
    add_product(total, rows[: tokens // 2])
    mirror(total)
    return rows, total


@given(side=st.sampled_from([1, 3, 511, 512, 513, 1100]), tokens=st.integers(1, 40), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=30)
def test_a_mirrored_sum_is_that_of_the_products(side: int, tokens: int, seed: int) -> None:
    rows, total = total_of(side, tokens, seed)
    wanted = sum((part.double().T @ part.double() for part in (rows, rows[: tokens // 2])), torch.zeros(side, side))
    torch.testing.assert_close(total.double(), wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(total, total.T)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_bits_do_not_depend_on_how_many_blocks_are_worked_on_at_once(count: int) -> None:
    alone = total_of(1500, 70, seed=1)[1]
    with at_once(count):
        assert torch.equal(total_of(1500, 70, seed=1)[1], alone)


SIDE = 192


def inputs_of(mixing: torch.Tensor, tokens: int, seed: int) -> torch.Tensor:
    return torch.randn(tokens, SIDE, generator=torch.Generator().manual_seed(seed)) @ mixing


def mixing_of(power: float, seed: int) -> torch.Tensor:
    """What makes inputs of white noise; their directions weigh k^−power, and columns differ in size."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(SIDE, SIDE, generator=generator) * torch.arange(1, SIDE + 1)[:, None] ** -power
    return mixing * torch.exp(0.7 * torch.randn(SIDE, generator=generator))


def hessian_of(rows: torch.Tensor) -> Hessian:
    return Hessian(2 * rows.T @ rows / max(1, len(rows)), len(rows))


def output_error(hessian: torch.Tensor | None, true: torch.Tensor, keep: float, bits: Bits = 2) -> float:
    """What quantising a matrix with a Hessian does to outputs, over what rounding to nearest does."""
    generator = torch.Generator().manual_seed(9)
    mask = torch.rand(96, SIDE, generator=generator) < keep
    weight = torch.randn(96, SIDE, generator=generator) * mask
    groups = Groups(mask, (RowRange(0, 96, bits),), 128)
    curvature = None if hessian is None else Curvature.of(hessian, "w")
    change = quantize_matrix(weight, groups, curvature, "w").values() - weight
    return float((change @ true * change).sum())


@pytest.mark.parametrize("keep", [1.0, 0.4])
@pytest.mark.parametrize("power", [0.05, 0.3, 0.8])
def test_a_shrunk_hessian_of_few_tokens_is_better_than_none_and_of_many_as_good_as_its_own(
    power: float, keep: float
) -> None:
    mixing = mixing_of(power, 1)
    true = 2 * mixing.T @ mixing
    without = output_error(None, true, keep)
    found = {}
    for tokens in (8, 64, 512, 20_000):
        own = hessian_of(inputs_of(mixing, tokens, 2))
        plain = output_error(own.matrix.clone(), true, keep)
        shrink(own)
        found[tokens] = output_error(own.matrix, true, keep)
        # With 8 tokens of a flat spectrum there is nothing to know: the order of columns alone moves errors by 2 %.
        assert found[tokens] < 1.02 * without, tokens
        assert found[tokens] < max(1.01 * plain, (1.5 if tokens < 20_000 else 1.02) * output_error(true, true, keep))
    assert sorted(found.values(), reverse=True) == list(found.values())


def test_experts_of_few_tokens_are_told_by_all_of_them() -> None:
    common = mixing_of(0.4, 1)
    mixings = [common + 0.3 * mixing_of(0.4, 10 + expert) for expert in range(4)]
    for tokens in (0, 8, 64, 512, 20_000):
        own = [hessian_of(inputs_of(mixing, tokens if n == 0 else 3000, n)) for n, mixing in enumerate(mixings)]
        true = 2 * mixings[0].T @ mixings[0]
        alone = hessian_of(inputs_of(mixings[0], tokens, 0))
        shrink(alone)
        shrink_together(own)
        error = output_error(own[0].matrix, true, 1.0)
        assert error < 0.8 * output_error(None, true, 1.0)
        assert error < 1.02 * output_error(alone.matrix, true, 1.0)


def test_what_a_hessian_is_shrunk_by_rises_from_many_tokens_to_none() -> None:
    mixing = mixing_of(0.5, 1)
    found = [shrinkage(hessian_of(inputs_of(mixing, tokens, 2))) for tokens in (100_000, 5000, 500, 50, 5, 0)]
    assert found == sorted(found)
    assert found[0] < 0.005
    assert found[-1] == 1.0
    assert shrinkage(Hessian(torch.eye(3), 10)) == 1.0  # nothing off the diagonal: no matter


def test_shrinking_leaves_the_diagonal_and_dead_columns() -> None:
    rows = inputs_of(mixing_of(0.5, 1), 20, 2)
    rows[:, 3] = 0
    hessian = hessian_of(rows)
    before = hessian.matrix.clone()
    shrink(hessian)
    assert torch.equal(hessian.matrix.diagonal(), before.diagonal())
    assert bool(torch.isfinite(hessian.matrix).all())
    off = ~torch.eye(SIDE, dtype=torch.bool)
    assert bool((hessian.matrix.abs() <= before.abs())[off].all())


@pytest.mark.parametrize(("tokens", "short"), [(191, True), (192, False)])
def test_fewer_tokens_than_columns_are_short(tokens: int, short: bool) -> None:
    assert Hessian(torch.eye(SIDE), tokens).is_short is short
