"""Where a checkpoint's tensors go in a model that is held by transformers: its own conversion, followed with probes.

transformers may rename, stack, join and transpose what it loads; the experts of a checkpoint become halves of slices
of one parameter. What it does is not restated here but observed: tensors of numbers are loaded in place of weights.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from impart_core.base.errors import CalibrationError

Index = slice | torch.Tensor
_ALL = slice(None)


@dataclass(frozen=True)
class Place:
    """Where a matrix of the checkpoint, or a part of it, lies in a parameter.

    Attributes:
        parameter: the parameter's name.
        expert: which matrix of the parameter, where it is a stack.
        transposed: whether it lies there transposed.
        at: which rows and columns of the parameter's matrix it takes.
        source: which rows and columns of the checkpoint's matrix, transposed or not, these are.
    """

    parameter: str
    expert: int | None
    transposed: bool
    at: tuple[Index, Index]
    source: tuple[Index, Index]

    def write(self, parameter: torch.Tensor, weight: torch.Tensor) -> None:
        """Put the checkpoint's matrix (m, n) where it lies in the parameter."""
        matrix = parameter if self.expert is None else parameter[self.expert]
        values = (weight.T if self.transposed else weight)[self.source]
        matrix[self.at] = values.to(matrix)

    def is_whole(self, axis: int) -> bool:
        """Return whether along an axis of the parameter's matrix all of it is here, in the checkpoint's order."""
        return all(isinstance(index[axis], slice) and index[axis] == _ALL for index in (self.at, self.source))


def load(model: Any, weights: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Put a checkpoint's tensors where the model keeps them, as `from_pretrained` does, and leave the rest.

    This and `checkpoint.model` are all that use how transformers loads, which is no documented interface of it.

    Args:
        model: a model of transformers.
        weights: tensors by the checkpoint's names; those that the model does not have are passed over.
        device: where they go; they get their parameters' dtype.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    convert_and_load_state_dict_in_model(
        model=model,
        state_dict=dict(weights),
        load_config=LoadStateDictConfig(
            weight_mapping=get_model_conversion_mapping(model), device_map={"": device}, dtype=torch.float32
        ),
    )


@contextmanager
def restored(model: torch.nn.Module) -> Iterator[None]:
    """Give every module its own parameters back at the end, whatever was put in their place."""
    before = [(module, dict(module._parameters)) for module in model.modules()]
    try:
        yield
    finally:
        for module, parameters in before:
            module._parameters.update(parameters)


def fill(model: torch.nn.Module, value: float, device: torch.device) -> None:
    """Let every parameter that is on no device be one number, which takes no memory."""
    number = torch.tensor(value, device=device)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                module._parameters[name] = torch.nn.Parameter(number.expand(parameter.shape), requires_grad=False)


def find_places(model: Any, layer: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> dict[str, list[Place]]:
    """Find where each matrix of a layer lies.

    The layer's matrices are loaded three times with numbers in place of weights: which matrix a value comes from, its
    row, and its column. That takes the memory of the parameters that transformers does not load as they are.

    Args:
        model: the model.
        layer: one of its layers, all of whose parameters are on no device.
        weights: the layer's tensors by the checkpoint's names; only shapes matter.

    Returns:
        the places by the matrix's name, `name[index]` in a stack (experts, m, n); parameters by their names in the
        layer. Matrices that the layer does not have are missing.

    Raises:
        CalibrationError: matrices are joined in a way that is not followed here.
    """
    shapes = {name: tuple(w.shape) for name, w in weights.items() if w.dim() in (2, 3) and min(w.shape[-2:]) > 1}
    names: list[str] = []
    numbers = {}
    for name, shape in shapes.items():
        stack = shape[0] if len(shape) == 3 else 1
        first, each = len(names), (stack, 1, 1) if len(shape) == 3 else ()
        numbers[name] = torch.arange(first, first + stack).reshape(each)
        names += [f"{name}[{index}]" for index in range(stack)] if len(shape) == 3 else [name]
    with _probe(model, layer, shapes, numbers) as found:
        regions = [region for name, parameter in found.items() for region in _regions(name, parameter)]
    lines = []
    for axis in (0, 1):
        sides = {name: torch.arange(shape[axis - 2]).unsqueeze(1 - axis) for name, shape in shapes.items()}
        with _probe(model, layer, shapes, sides) as found:
            lines.append([region.lines(found[region.parameter]) for region in regions])
    places: dict[str, list[Place]] = {name: [] for name in names}
    for region, rows, columns in zip(regions, *lines, strict=True):
        name = names[region.number]
        places[name].append(region.place(rows, columns, shapes[name.partition("[")[0]][-2:]))
    return {name: found for name, found in places.items() if found}


@dataclass(frozen=True)
class _Region:
    """The rows and columns of a parameter's matrix that come from one matrix of the checkpoint."""

    number: int
    parameter: str
    expert: int | None
    shape: tuple[int, int]
    at: tuple[torch.Tensor, torch.Tensor]

    def lines(self, parameter: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the values down the region's first column and along its first row."""
        matrix = parameter if self.expert is None else parameter[self.expert]
        return matrix[self.at[0], self.at[1][0]].long(), matrix[self.at[0][0], self.at[1]].long()

    def place(
        self,
        rows: tuple[torch.Tensor, torch.Tensor],
        columns: tuple[torch.Tensor, torch.Tensor],
        shape: tuple[int, ...],
    ) -> Place:
        """Return the place, from the lines of the checkpoint's row and column numbers."""
        transposed = bool(rows[1][0] != rows[1][-1])  # along the parameter's row, the checkpoint's row changes
        down, along = (columns[0], rows[1]) if transposed else (rows[0], columns[1])
        m, n = reversed(shape) if transposed else shape
        return Place(
            self.parameter,
            self.expert,
            transposed,
            (_index(self.at[0], self.shape[0]), _index(self.at[1], self.shape[1])),
            (_index(down, m), _index(along, n)),
        )


@contextmanager
def _probe(
    model: Any, layer: torch.nn.Module, shapes: Mapping[str, tuple[int, ...]], values: Mapping[str, torch.Tensor]
) -> Iterator[dict[str, torch.Tensor]]:
    with restored(model):
        numbers = {name: values[name].float().expand(shape) for name, shape in shapes.items()}
        load(model, numbers, torch.device("cpu"))
        yield {name: tensor.detach() for name, tensor in layer.named_parameters() if _is_found(tensor)}


def _is_found(parameter: torch.Tensor) -> bool:
    return not parameter.is_meta and parameter.dim() in (2, 3)


def _regions(name: str, parameter: torch.Tensor) -> Iterator[_Region]:
    """Split a parameter, whose values say what they come from, into its parts."""
    stack = parameter.dim() == 3
    for expert, matrix in enumerate(parameter if stack else [parameter]):
        m, n = matrix.shape
        down, along = matrix[:, 0], matrix[0, :]
        by_rows, by_columns = down.unique(), along.unique()
        if len(by_rows) > 1 and len(by_columns) > 1:
            raise CalibrationError(
                f"The parameter {name!r} is joined from parts of the checkpoint along both of its sides, which "
                "calibration cannot follow. Use a method that needs no calibration."
            )
        for number in by_rows if len(by_rows) > 1 else by_columns:
            rows = (down == number).nonzero().flatten() if len(by_rows) > 1 else torch.arange(m)
            columns = (along == number).nonzero().flatten() if len(by_columns) > 1 else torch.arange(n)
            yield _Region(int(number), name, expert if stack else None, (m, n), (rows, columns))


def _index(numbers: torch.Tensor, side: int) -> Index:
    """Return numbers as a slice where they are evenly spaced, all of a side as a slice of nothing but `:`."""
    first, last = int(numbers[0]), int(numbers[-1])
    step = int(numbers[1]) - first if len(numbers) > 1 else 1
    if step < 1 or not torch.equal(numbers, torch.arange(first, first + step * len(numbers), step)):
        return numbers
    return _ALL if (first, last, step) == (0, side - 1, 1) else slice(first, last + 1, step)
