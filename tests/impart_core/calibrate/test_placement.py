"""Matrices are found wherever loading puts them: joined, stacked, interleaved, in another order, split, transposed."""

from collections.abc import Callable, Mapping

import pytest
import torch

from impart_core.base.errors import CalibrationError
from impart_core.calibrate import placement
from impart_core.calibrate.placement import find_places

Tensors = Mapping[str, torch.Tensor]
Load = Callable[[Tensors], dict[str, torch.Tensor]]
ORDER = torch.tensor([3, 0, 2, 1, 5, 4])


def interleaved(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.stack([a, b], dim=1).flatten(0, 1)


LOADS: dict[str, Load] = {
    "as it is": lambda w: {"p": w["a"]},
    "transposed": lambda w: {"p": w["a"].T},
    "one above the other": lambda w: {"p": torch.cat([w["a"], w["b"]])},
    "side by side, transposed": lambda w: {"p": torch.cat([w["a"].T, w["b"].T], dim=1)},
    "rows in turn": lambda w: {"p": interleaved(w["a"], w["b"])},
    "rows in another order": lambda w: {"p": w["a"][ORDER]},
    "split in two": lambda w: {"p": w["a"][:2], "q": w["a"][2:]},
    "experts stacked and joined": lambda w: {
        "p": torch.stack([torch.cat([w["a"], w["b"]]), torch.cat([w["b"], w["a"]])])
    },
    "a stack as it is": lambda w: {"p": w["s"]},
    "a stack, each transposed": lambda w: {"p": w["s"].transpose(1, 2)},
}


def model_of(shapes: Mapping[str, torch.Size]) -> torch.nn.Module:
    module = torch.nn.Module()
    for name, shape in shapes.items():
        module.register_parameter(name, torch.nn.Parameter(torch.empty(shape, device="meta")))
    return module


@pytest.mark.parametrize("how", LOADS)
def test_writing_each_matrix_in_its_place_gives_what_loading_gives(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {"a": torch.randn(6, 4, generator=generator), "b": torch.randn(6, 4, generator=generator)}
    weights["s"] = torch.randn(3, 6, 4, generator=generator)
    expected = LOADS[how](weights)

    def load(model: torch.nn.Module, found: Tensors, device: torch.device) -> None:
        for name, tensor in LOADS[how](found).items():
            model._parameters[name] = torch.nn.Parameter(tensor)

    monkeypatch.setattr(placement, "load", load)
    model = model_of({name: tensor.shape for name, tensor in expected.items()})
    places = find_places(model, model, weights)
    written = {name: torch.full_like(tensor, torch.nan) for name, tensor in expected.items()}
    for name, found in places.items():
        matrix = weights["s"][int(name[2])] if name.startswith("s") else weights[name]
        for place in found:
            place.write(written[place.parameter], matrix)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in written.items())
    assert all(parameter.is_meta for parameter in model.parameters())


def test_matrices_joined_along_both_sides_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(model: torch.nn.Module, found: Tensors, device: torch.device) -> None:
        pair = torch.cat([found["a"], found["b"]])
        model._parameters["p"] = torch.nn.Parameter(torch.cat([pair, pair.flip(0)], dim=1))

    monkeypatch.setattr(placement, "load", load)
    model = model_of({"p": torch.Size([12, 8])})
    with pytest.raises(CalibrationError, match=r"'p' is joined from parts .* along both of its sides"):
        find_places(model, model, {"a": torch.ones(6, 4), "b": torch.ones(6, 4)})
