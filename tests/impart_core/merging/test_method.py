"""A merge method's signature is its options; draws depend on what they are for; weights are divided by their sum."""

import numpy as np
import pytest
import torch

from impart_core.base.errors import ConfigError
from impart_core.codec.mask import mask_key, mask_words
from impart_core.merging import method as module
from impart_core.merging.method import Draws, each, shares
from impart_core.merging.methods import MERGE_METHODS


@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 4), (9,), (), (0,), (3, 0), (0, 3)], ids=str)
@pytest.mark.parametrize("at_once", [1, 12, 1 << 20])
def test_draws_are_philox_words_whatever_is_drawn_at_once(
    shape: tuple[int, ...], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WORDS_AT_ONCE", at_once)
    drawn = Draws(3, "w").uniform(1, shape)
    columns, rows = shape[-1] if shape else 1, int(np.prod(shape[:-1], dtype=int))
    words = mask_words(mask_key(3, "w", "merge 1"), columns, rows)
    assert drawn.shape == shape
    assert drawn.dtype == torch.float32
    assert np.array_equal(drawn.numpy().reshape(rows, columns), (words >> 8) / 2.0**24)


def test_draws_are_even_and_never_one() -> None:
    drawn = Draws(0, "w").uniform(0, (500, 400))
    assert float(drawn.min()) >= 0
    assert float(drawn.max()) < 1
    # 200,000 draws: a mean's standard error is 0.29/√200,000 = 0.00065.
    assert abs(float(drawn.mean()) - 0.5) < 0.004
    assert abs(float(drawn.var()) - 1 / 12) < 0.002


@pytest.mark.parametrize(
    ("name", "option", "value", "said"),
    [
        ("ties", "density", 0.0, "density is 0.0; it must be more than 0"),
        ("dare_linear", "density", 1.5, "density is 1.5; it must be at most 1"),
        ("breadcrumbs", "gamma", -0.1, "gamma is -0.1; it must be at least 0"),
        ("della", "epsilon", 0.5, "epsilon is 0.5; it must be less than 0.5"),
        ("sce", "select_topk", 2, "select_topk is 2"),
        ("ties", "form", "own", "form is 'own'; it must be 'weighted' or 'paper'"),
        ("dare_ties", "rescale", "l7", "rescale is 'l7'"),
        ("karcher", "max_iter", -1, "max_iter is -1"),
        ("ties", "weight", float("nan"), "weight is nan"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_name(name: str, option: str, value: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        MERGE_METHODS.get(name).options[option].checked(value)


@pytest.mark.parametrize(("density", "epsilon"), [(0.1, 0.15), (0.9, 0.15), (0.5, 0.5)])
def test_della_refuses_probabilities_beyond_nought_and_one(density: float, epsilon: float) -> None:
    function = MERGE_METHODS.get("della").function
    with pytest.raises(ConfigError, match=r"density .* ± epsilon .* is not between 0 and 1. Set epsilon below 0\.\d"):
        function([torch.ones(4, 4)], weight=1.0, density=density, epsilon=epsilon, draws=Draws(0, "w"))


@pytest.mark.parametrize("name", ["linear", "multislerp"])
def test_weights_that_add_up_to_nought_are_refused_where_they_are_divided_by_it(name: str) -> None:
    with pytest.raises(ConfigError, match="add up to 0 and cannot be divided by it"):
        MERGE_METHODS.get(name).function([torch.ones(3), torch.zeros(3)], weight=[1.0, -1.0])


def test_values_are_one_for_each_model_or_one_for_all() -> None:
    tensors = [torch.ones(1)] * 3
    assert each(2, tensors) == [2.0, 2.0, 2.0]
    assert shares([1, 1, 2], tensors) == [0.25, 0.25, 0.5]
    with pytest.raises(ValueError, match="2 values are given for 3 models"):
        each([1.0, 2.0], tensors)


def test_which_methods_do_without_a_base() -> None:
    without = {name for name in MERGE_METHODS if not MERGE_METHODS.get(name).needs_base}
    assert without == {"karcher", "linear", "multislerp", "nuslerp", "passthrough"}
