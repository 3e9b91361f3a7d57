"""Kronecker factors of a model's matrices: what they are fed, and the gradients of the divergence in what they give.

Both are summed over calibration text at some points on the straight line from base to fine-tune: at the fine-tune
itself there is no divergence, and no gradient. Tokens are weighted as in distillation (see `calibrate.distil`).
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from typing import Any

import torch

from impart_core.calibrate.layer import batch_size
from impart_core.calibrate.logits import divergence, foreseen, logits_of
from impart_core.quantization.kfac import Sensitivity

POINTS = (0.3, 0.6, 0.9)  # shares of the delta


class Sums:
    """The sums of x·xᵀ and g·gᵀ of some matrices of a model, on its device."""

    def __init__(self) -> None:
        """Begin with none."""
        self._inputs: dict[str, torch.Tensor] = {}
        self._gradients: dict[str, torch.Tensor] = {}
        self._transposed: dict[str, bool] = {}
        self._is_forward = False

    def add(self, model: Any, weights: Mapping[str, torch.Tensor], tokens: torch.Tensor, wanted: torch.Tensor) -> None:
        """Run a model on all sequences, forward and back.

        Args:
            model: as `load_causal_model` returns it.
            weights: its matrices by the checkpoint's names, as they were loaded. What transformers does not hold as the
                weight of a linear layer under such a name is left out.
            tokens: (sequences, length), an integer dtype.
            wanted: see `calibrate.logits.predictions`, (sequences, length, 2, k).
        """
        device, size = next(model.parameters()).device, batch_size(tokens.shape[1])
        with ExitStack() as stack:
            stack.callback(model.get_input_embeddings().register_forward_hook(_with_gradient).remove)
            for name, module in _linear_modules(model, weights):
                self._transposed[name] = not isinstance(module, torch.nn.Linear)
                stack.callback(module.register_forward_hook(self._watch(name)).remove)
            for part, targets in zip(torch.split(tokens.long(), size), torch.split(wanted, size), strict=True):
                ours, theirs = part.to(device), targets.to(device)
                self._is_forward = True
                loss = (foreseen(theirs, ours) * divergence(logits_of(model, ours), theirs)).sum()
                self._is_forward = False  # layers are run again on the way back
                loss.backward()  # type: ignore[no-untyped-call]

    def sensitivities(self) -> dict[str, Sensitivity]:
        """Return the factors of each matrix by name, on the CPU."""
        found = {}
        for name, gradients in self._gradients.items():
            sides = gradients.cpu(), self._inputs[name].cpu()
            found[name] = Sensitivity(*(reversed(sides) if self._transposed[name] else sides))
        return found

    def _watch(self, name: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def back(gradient: torch.Tensor) -> None:
            _add(self._gradients, name, gradient)

        def forward(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if self._is_forward:
                _add(self._inputs, name, inputs[0].detach())
                output.register_hook(back)  # type: ignore[no-untyped-call]

        return forward


def _add(sums: dict[str, torch.Tensor], name: str, values: torch.Tensor) -> None:
    rows = values.reshape(-1, values.shape[-1]).float()
    total = sums.get(name)
    if total is None:
        total = sums[name] = torch.zeros(rows.shape[1], rows.shape[1], device=rows.device)
    total.addmm_(rows.T, rows)


def _with_gradient(_: torch.nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
    return output.detach().requires_grad_()


def _linear_modules(model: Any, weights: Mapping[str, torch.Tensor]) -> Iterable[tuple[str, torch.nn.Module]]:
    from transformers.pytorch_utils import Conv1D

    for name, weight in weights.items():
        for full in (name, f"{model.base_model_prefix}.{name}"):
            path, _, attribute = full.rpartition(".")
            with suppress(AttributeError):
                module = model.get_submodule(path)
                if isinstance(module, torch.nn.Linear | Conv1D) and attribute == "weight":
                    if torch.equal(module.weight.detach().cpu(), weight.float()):
                        yield name, module
                    break
