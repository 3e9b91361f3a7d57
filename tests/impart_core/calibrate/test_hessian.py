import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.base.parallel import at_once
from impart_core.calibrate.hessian import add_product, mirror


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
