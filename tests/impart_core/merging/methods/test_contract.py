"""What every merge method promises, whatever it is given."""

from typing import Any

import pytest
import torch

from impart_core.merging.method import Draws
from impart_core.merging.methods import MERGE_METHODS
from tests.impart_core.merging.methods.calls import RANDOM, deltas_of, merged, models_of, options_for
from tests.pretend_device import PRETEND

methods = pytest.mark.parametrize("name", MERGE_METHODS)
SHAPES = [(5, 7), (33,), (), (1,), (0,), (0, 4), (4, 0), (2, 3, 4), (6, 1), (9, 2)]
SPARSE: dict[str, Any] = {"density": 0.5, "gamma": 0.1, "epsilon": 0.2, "select_topk": 0.5}
# Draws are numbered by model; two are told apart by which is the base.
ORDERED = {*RANDOM, "slerp", "arcee_fusion"}
# They change one model too: by flattening its spectrum, by t, by importance, and for want of an angle.
NOT_ITSELF = {"iso_c", "slerp", "nearswap", "arcee_fusion", "model_stock"}


def sparse(name: str) -> dict[str, Any]:
    """Return options that drop entries; `epsilon` is another thing to RAM."""
    return {option: value for option, value in SPARSE.items() if option != "epsilon" or not name.startswith("ram")}


def inputs(name: str, shape: tuple[int, ...]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    return deltas_of(1, shape, seed=9, scale=1.0)[0], deltas_of(models_of(MERGE_METHODS.get(name)), shape)


@methods
def test_a_method_names_its_source_and_its_defaults_are_valid(name: str) -> None:
    method = MERGE_METHODS.get(name)
    assert method.source
    assert method.title
    for option in method.options.values():
        assert option.required or option.default is None or option.checked(option.default) == option.default


@methods
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("drops", [False, True], ids=["all", "some"])
def test_any_shape_gives_finite_float32_of_this_shape(name: str, shape: tuple[int, ...], drops: bool) -> None:
    base, deltas = inputs(name, shape)
    result = merged(name, base, deltas, **sparse(name) if drops else {})
    assert result.shape == shape
    assert result.dtype == torch.float32
    assert bool(result.isfinite().all())


@methods
@pytest.mark.parametrize("base_is", ["zero", "random"])
@pytest.mark.parametrize("deltas_are", ["zero", "equal", "opposite", "constant", "zero but one"])
def test_degenerate_inputs_give_finite_results(name: str, base_is: str, deltas_are: str) -> None:
    base, deltas = inputs(name, (6, 5))
    base = torch.zeros_like(base) if base_is == "zero" else base
    deltas = {
        "zero": [torch.zeros_like(delta) for delta in deltas],
        "equal": [deltas[0].clone() for _ in deltas],
        "opposite": [deltas[0] * (-1) ** number for number, _ in enumerate(deltas)],
        "constant": [torch.full_like(delta, 0.25) for delta in deltas],
        "zero but one": [deltas[0], *(torch.zeros_like(delta) for delta in deltas[1:])],
    }[deltas_are]
    for options in ({}, sparse(name), {"weight": 1.0}, {"rescale": True, **sparse(name)}, {"normalize": True}):
        result = merged(name, base, deltas, **options)
        assert bool(result.isfinite().all())
        # Those that normalise, and those that only scale: nothing grows beyond rounding and a factor of the weights.
        assert result.abs().max() <= 30 * max(float(delta.abs().max()) for delta in deltas) + 1e-5


@methods
def test_inputs_stay_as_they_are_and_share_no_memory_with_the_result(name: str) -> None:
    method, (base, deltas) = MERGE_METHODS.get(name), inputs(name, (5, 7))
    tensors = deltas if method.takes_deltas else [base, *deltas][: 2 if method.base == "among" else None]
    tensors = tensors[: method.models[1]]
    before = [tensor.clone() for tensor in tensors]
    options: dict[str, Any] = options_for(method, len(tensors), **sparse(name))
    options |= {"draws": Draws(0, "w")} if method.takes("draws") else {}
    result = method.function(tensors, **options)
    result.fill_(7.0)
    assert all(torch.equal(tensor, was) for tensor, was in zip(tensors, before, strict=True))


@methods
def test_tensors_may_lie_in_memory_in_any_way(name: str) -> None:
    base, deltas = inputs(name, (6, 8))
    scattered = [torch.stack([delta, delta], dim=-1)[..., 0] for delta in deltas]
    turned = [delta.T.contiguous().T for delta in deltas]
    expected = merged(name, base, deltas, **sparse(name))
    for others in (scattered, turned):
        assert not others[0].is_contiguous()
        torch.testing.assert_close(merged(name, base, others, **sparse(name)), expected)


@methods
@pytest.mark.parametrize("shape", [(40, 50), (33,), (), (0, 4), (2, 7, 5)], ids=str)
def test_a_device_gives_the_results_of_the_cpu(name: str, shape: tuple[int, ...]) -> None:
    base, deltas = inputs(name, shape)
    there = merged(name, base.to(PRETEND), [delta.to(PRETEND) for delta in deltas], **sparse(name))
    assert there.device == PRETEND
    torch.testing.assert_close(there.cpu(), merged(name, base, deltas, **sparse(name)), rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", [name for name in MERGE_METHODS if MERGE_METHODS.get(name).entrywise])
def test_an_entrywise_method_gives_the_same_bits_whatever_part_it_is_given(name: str) -> None:
    base, deltas = inputs(name, (6, 50))
    whole, flat = merged(name, base, deltas, **sparse(name)), [delta.flatten() for delta in deltas]
    parts = [
        merged(name, base.flatten()[start : start + 37], [delta[start : start + 37] for delta in flat], **sparse(name))
        for start in range(0, base.numel(), 37)
    ]
    assert torch.equal(torch.cat(parts), whole.flatten())


@methods
def test_the_order_of_models_is_immaterial(name: str) -> None:
    if name in ORDERED or models_of(MERGE_METHODS.get(name)) < 2:
        pytest.skip("its models are told apart, or there is one")
    base, deltas = inputs(name, (12, 10))
    weights = [0.5, 0.3, 0.4][: len(deltas)]
    expected = merged(name, base, deltas, weight=weights, **sparse(name))
    turned = merged(name, base, deltas[::-1], weight=weights[::-1], **sparse(name))
    torch.testing.assert_close(turned, expected, rtol=1e-5, atol=1e-6)


@methods
@pytest.mark.parametrize("shape", [(12, 10), (33,), (2, 7, 5)], ids=str)
def test_one_model_alone_is_merged_to_itself(name: str, shape: tuple[int, ...]) -> None:
    if name in NOT_ITSELF:
        pytest.skip("it changes one model too")
    base, deltas = inputs(name, shape)
    alone = merged(name, base, deltas[:1], weight=1.0, density=1.0)
    torch.testing.assert_close(alone, deltas[0] * (deltas[0].abs() > 1e-5), rtol=1e-5, atol=1e-6)


@methods
def test_equal_models_are_merged_to_themselves(name: str) -> None:
    if name in NOT_ITSELF - {"model_stock"}:
        pytest.skip("it changes one model too")
    base, deltas = inputs(name, (12, 10))
    equal = [deltas[0].clone() for _ in deltas]
    # TSV-Merge adds what lies in different directions, and averages what lies in the same.
    weight = 1.0 if name == "tsv_merge" else 1 / len(equal)
    result = merged(name, base, equal, weight=weight, density=1.0)
    torch.testing.assert_close(result, deltas[0] * (deltas[0].abs() > 1e-5), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", RANDOM)
def test_draws_depend_on_seed_tensor_and_model_and_on_nothing_else(name: str) -> None:
    base, (first, *_) = inputs(name, (20, 30))
    options = {"density": 0.5, "epsilon": 0.2, "weight": [1.0, 1.0]}
    deltas = [first, first.clone()]
    expected = merged(name, base, deltas, **options)
    torch.manual_seed(5)
    assert torch.equal(merged(name, base, deltas, **options), expected)
    assert not torch.equal(merged(name, base, deltas, seed=1, **options), expected)
    assert not torch.equal(merged(name, base, deltas, tensor="v", **options), expected)
    one, both = (merged(name, base, deltas, **options | {"weight": [1.0, other]}) for other in (0.0, 1.0))
    assert not torch.equal((one != 0), (both != 0))  # the other model keeps other entries
