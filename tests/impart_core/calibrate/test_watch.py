"""Products with watched parameters are seen whichever way they are written, and no others."""

from collections.abc import Callable

import pytest
import torch

from impart_core.calibrate.watch import Fed, Watch

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
STACK = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1))
MATRIX = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("product", "expert", "axis"),
    [
        (lambda: torch.nn.functional.linear(X, MATRIX), None, 1),
        (lambda: torch.nn.functional.linear(X.view(1, 5, 4), MATRIX, torch.ones(6)), None, 1),
        (lambda: X @ MATRIX.T, None, 1),
        (lambda: torch.mm(X, STACK[2]), 2, 0),
        (lambda: X.matmul(STACK[torch.tensor(1)]), 1, 0),
        (lambda: torch.nn.functional.linear(X, STACK[1].T), 1, 0),
        (lambda: torch.addmm(torch.ones(6), X, STACK[0]), 0, 0),
    ],
)
def test_a_product_tells_the_matrix_its_inputs_and_the_axis_that_they_meet(
    product: Callable[[], torch.Tensor], expert: int | None, axis: int
) -> None:
    seen: list[Fed] = []
    with Watch({"matrix": MATRIX, "stack": STACK}, seen.append):
        product()
    (fed,) = seen
    assert (fed.parameter, fed.expert, fed.axis) == ("matrix" if expert is None else "stack", expert, axis)
    assert torch.equal(fed.rows, X)


def test_one_product_of_all_experts_is_seen_as_one_of_each() -> None:
    seen: list[Fed] = []
    inputs = torch.stack([X, 2 * X, 3 * X])
    with Watch({"stack": STACK}, seen.append):
        torch.bmm(inputs, STACK)
    assert [(fed.expert, fed.axis) for fed in seen] == [(0, 0), (1, 0), (2, 0)]
    assert all(torch.equal(fed.rows, its) for fed, its in zip(seen, inputs, strict=True))


def test_other_products_and_those_of_nothing_are_not_seen() -> None:
    seen: list[Fed] = []
    with Watch({"matrix": MATRIX}, seen.append):
        _ = X @ MATRIX.clone().T
        _ = X @ STACK[0]
        _ = X[:0] @ MATRIX.T
        _ = MATRIX @ X.T
    assert seen == []
