"""The Hessian: factored once, damped as far as it takes, and of use or known not to be."""

import pytest
import torch

from impart_core.base.errors import TensorValueError
from impart_core.quantization.curvature import Curvature
from tests.impart_core.quantization.samples import HESSIANS, hessian_of


@pytest.mark.parametrize("kind", sorted(set(HESSIANS) - {"indefinite"}))
def test_the_root_and_its_inverse_are_those_of_the_damped_hessian_in_order(kind: str) -> None:
    hessian = hessian_of(kind, 24)
    curvature = Curvature.of(hessian, "w")
    damped = curvature.hessian.double() + curvature.added * torch.eye(24)
    ordered = damped[curvature.order][:, curvature.order]
    root, inverse = curvature.root.double(), curvature.inverse_root.double()
    scale = float(ordered.diagonal().max())
    torch.testing.assert_close(root @ root.T, ordered, rtol=0, atol=1e-5 * scale)  # float32, sums of 24
    torch.testing.assert_close(inverse.T @ inverse @ ordered, torch.eye(24).double(), rtol=0, atol=1e-3)  # cond ~1e3
    for triangular in (root, inverse):
        assert torch.equal(triangular, triangular.triu())


def test_columns_are_taken_by_falling_diagonal_and_equal_ones_as_they_lie() -> None:
    hessian = torch.diag(torch.tensor([1.0, 5.0, 1.0, 7.0, 0.0]))
    assert Curvature.of(hessian, "w").order.tolist() == [3, 1, 0, 2, 4]


def test_damping_is_a_part_of_the_mean_of_the_columns_that_inputs_reach() -> None:
    curvature = Curvature.of(torch.diag(torch.tensor([1.0, 3.0, 0.0])), "w")
    assert curvature.hessian.diagonal().tolist() == [1, 3, 2]
    assert curvature.added == pytest.approx(0.02)


@pytest.mark.parametrize(("lowest", "damping"), [(0.005, 0.01), (-0.05, 0.1), (-0.5, 1.0), (-1.5, None)])
def test_damping_grows_in_steps_until_the_hessian_is_positive_definite(lowest: float, damping: float | None) -> None:
    """The diagonal of this matrix is 1, and its smallest eigenvalue is as given."""
    hessian = torch.tensor([[1.0, 1 - lowest], [1 - lowest, 1.0]])
    curvature = Curvature.of(hessian, "w")
    assert curvature.added == pytest.approx(damping or 0)
    assert (curvature.root is None) == (damping is None)


def test_it_is_factored_once_for_all_weights_that_share_it() -> None:
    curvature = Curvature.of(hessian_of("correlated", 8), "w")
    assert curvature.inverse_root is curvature.inverse_root


def test_the_hessian_that_was_given_is_left_alone() -> None:
    hessian = hessian_of("dead columns", 9)
    before = hessian.clone()
    _ = Curvature.of(hessian, "w").inverse_root
    assert torch.equal(hessian, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_that_is_not_finite_is_refused_by_name(value: float) -> None:
    hessian = hessian_of("correlated", 4)
    hessian[1, 2] = value
    with pytest.raises(TensorValueError, match=r"inputs of 'layers\.0\.q_proj' holds NaN or infinity"):
        Curvature.of(hessian, "layers.0.q_proj")
