"""Sees what a layer's weights are multiplied by, whoever multiplies: a linear module, or experts in one tensor."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

# Where each product has its inputs and its weight, and which of the weight's axes meets the inputs.
_PRODUCTS: dict[Any, tuple[int, int, int]] = {
    torch.nn.functional.linear: (0, 1, -1),
    **dict.fromkeys((torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__), (0, 1, -2)),
    **dict.fromkeys((torch.mm, torch.Tensor.mm, torch.bmm, torch.Tensor.bmm), (0, 1, -2)),
    **dict.fromkeys((torch.addmm, torch.baddbmm), (1, 2, -2)),
}


@dataclass(frozen=True)
class Fed:
    """Inputs that a parameter was multiplied by.

    Attributes:
        parameter: its name.
        expert: which matrix of a stack; None where the parameter is a matrix.
        axis: which axis of the matrix meets the inputs: 0 its rows, 1 its columns.
        inputs: (…, side of that axis), as the model made them.
        version: how often their memory had been written to until then.
    """

    parameter: str
    expert: int | None
    axis: int
    inputs: torch.Tensor
    version: int

    @property
    def rows(self) -> torch.Tensor:
        """The inputs as (tokens, side)."""
        return self.inputs.reshape(-1, self.inputs.shape[-1])


class Watch(TorchFunctionMode):
    """A context in which every product with one of these parameters is reported, before it is worked out.

    A product may use a whole parameter, one matrix of a stack, or all of them at once, transposed or not: what counts
    is the memory that it reads.
    """

    def __init__(self, parameters: Mapping[str, torch.Tensor], report: Callable[[Fed], object]) -> None:
        """Watch parameters, contiguous, (m, n) or (experts, m, n), each in memory of its own."""
        super().__init__()
        self._parameters = {
            tensor.untyped_storage().data_ptr(): (name, tensor)
            for name, tensor in parameters.items()
            if tensor.dim() in (2, 3)
        }
        self._report = report

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Look at a product, and do what was asked for."""
        product = _PRODUCTS.get(func)
        if product is not None and len(args) > product[1]:
            self._look(args[product[0]], args[product[1]], product[2])
        return func(*args, **(kwargs or {}))

    def _look(self, inputs: torch.Tensor, weight: torch.Tensor, axis: int) -> None:
        name, parameter = self._parameters.get(weight.untyped_storage().data_ptr(), ("", weight))
        m, n = parameter.shape[-2:]
        if not name or sorted(weight.shape[-2:]) != sorted((m, n)) or not inputs.numel():
            return
        meets = 0 if weight.stride(axis) == n else 1
        if weight.dim() == 3:
            for expert, its in enumerate(inputs.expand(len(weight), -1, -1)):
                self._report(Fed(name, expert, meets, its, its._version))
        else:
            index = weight.storage_offset() // (m * n)
            self._report(Fed(name, index if parameter.dim() == 3 else None, meets, inputs, inputs._version))
