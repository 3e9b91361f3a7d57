"""A causal language model that is run one layer at a time, each with its weights for as long as it is needed."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from impart_core.base.errors import CalibrationError
from impart_core.base.foreign import Done
from impart_core.base.parallel import making_a_model
from impart_core.calibrate.architecture import ADVICE, model_code, model_config
from impart_core.calibrate.layer import Call, Layer
from impart_core.calibrate.placement import Place, fill, find_places, load, restored
from impart_core.checkpoint.index import Checkpoint
from impart_core.checkpoint.layout import OUTSIDE, group_blocks
from impart_core.checkpoint.model import renaming


class _Stopped(Done):
    """Ends a model's forward pass where all that was wanted of it is there."""


def decoder_layers(checkpoint: Checkpoint) -> list[str]:
    """Return the blocks of a checkpoint that are decoder layers, in the order in which they run.

    Raises:
        CalibrationError: as for `CausalModel.of`, and where a layer has no tensors.
    """
    return CausalModel.of(checkpoint, torch.device("cpu")).layers(checkpoint.tensors)


class CausalModel:
    """A decoder-only causal language model of transformers whose parameters take no memory.

    Its own code is run, and in float32. Not for use from several threads at once.
    """

    def __init__(self, model: Any, layers: torch.nn.ModuleList, location: str, device: torch.device) -> None:
        """Take a model; see `of`.

        Args:
            model: a causal language model whose parameters are all on no device, and whose buffers are on this one.
            layers: its decoder layers.
            location: what errors call it.
            device: where it runs.
        """
        self._model = model
        self._layers = layers
        self._location = location
        self._device = device
        self._renamed = renaming(model)
        self._path = next(name for name, module in model.named_modules() if module is layers)
        self._calls: dict[tuple[int, int], list[Call]] = {}
        self._places: dict[frozenset[tuple[str, torch.Size]], dict[str, list[Place]]] = {}
        self._answer = self._answer_of_layers()

    @classmethod
    def of(cls, checkpoint: Checkpoint, device: torch.device) -> "CausalModel":
        """Make the model of a checkpoint's configuration; no weights are read.

        This turns off transformers' progress bars for the process.

        Raises:
            CalibrationError: it is no decoder-only causal language model, transformers does not know it, or its layers
                need more than hidden states and positions.
        """
        from accelerate import init_empty_weights  # type: ignore[import-untyped]
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        config = model_config(checkpoint)
        with making_a_model(), init_empty_weights(include_buffers=False):
            # Experts one by one are plain products of matrices, in which it can be seen what each of them is fed.
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, experts_implementation="eager").eval()
        for module in model.modules():
            for name, buffer in module._buffers.items():
                module._buffers[name] = buffer if buffer is None else buffer.to(device)
        count = config.get_text_config().num_hidden_layers
        stacks = (m for m in model.get_decoder().modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count)
        layers = next(stacks, None)
        if layers is None:
            raise CalibrationError(f"{checkpoint.location} keeps its {count} layers in no single list. {ADVICE}")
        made = cls(model, layers, checkpoint.location, device)
        made._calls_of(1, 2)  # refuses what cannot be run layer by layer
        return made

    def layers(self, names: Iterable[str]) -> list[str]:
        """Return the blocks that are decoder layers, in the order in which they run.

        Args:
            names: all tensors of the checkpoint; what is in none of these blocks is outside of the layers.

        Raises:
            CalibrationError: a layer of the model has no tensors here.
        """
        found = {}
        for block in group_blocks(names):
            indices = (self._index(name) for name in block.tensors if block.name != OUTSIDE)
            index = next((index for index in indices if index is not None), None)
            if index is not None:
                found[index] = block.name
        missing = [index for index in range(len(self._layers)) if index not in found]
        if missing:
            raise CalibrationError(
                f"The configuration of {self._location} says that it has {len(self._layers)} layers, but it holds no "
                f"tensors of layer {missing[0]}. Copy the checkpoint again."
            )
        return [found[index] for index in sorted(found)]

    @torch.no_grad()
    def embed(self, weights: Mapping[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
        """Return what the first layer is given.

        Args:
            weights: the tensors outside of the layers, by the checkpoint's names, any floating dtype; the head and the
                last norm may be missing.
            tokens: ids, (B, L), an integer dtype.

        Returns:
            (B, L, H), float32.

        Raises:
            CalibrationError: what the model embeds tokens with is missing, or holds NaN.
        """
        with restored(self._model):
            load(self._model, weights, self._device)
            fill(self._model, torch.nan, self._device)  # shows in the result if it is used
            with self._replaced(lambda call, _: _stop(call.hidden)):
                hidden: torch.Tensor = self._forward(tokens.to(self._device).long()).float()
        if hidden.dim() != 3:
            raise CalibrationError(
                f"The layers of {self._location} are given hidden states of shape {list(hidden.shape)}, and only "
                f"[sequences, tokens, width] can be calibrated. {ADVICE}"
            )
        if bool(hidden.isnan().any()):
            raise CalibrationError(
                f"The embeddings of {self._location} give NaN: the checkpoint lacks one of them, or its values are NaN."
                " Copy the checkpoint again."
            )
        return hidden

    @contextmanager
    def layer(self, block: str, weights: Mapping[str, torch.Tensor]) -> Iterator[Layer]:
        """Give one layer its weights, for the length of the context.

        Args:
            block: the layer's block, as `layers` gives it.
            weights: all of its tensors, whole, by the checkpoint's names, any floating dtype; they are copied.

        Raises:
            CalibrationError: there is no such layer, a tensor of it is missing, or transformers joins its matrices in
                a way that calibration cannot follow.
        """
        index = next((found for name in weights if (found := self._index(name)) is not None), None)
        if index is None:
            raise CalibrationError(f"{block!r} is no decoder layer of {self._location}. {ADVICE}")
        module = self._layers[index]
        places = self._places_in(module, block, weights)
        with restored(self._model):
            load(self._model, weights, self._device)
            missing = sorted(name for name, parameter in module.named_parameters() if parameter.is_meta)
            if missing:
                raise CalibrationError(
                    f"{self._location} holds no tensor for {missing[0]!r} of {block}. Copy the checkpoint again, or "
                    "use a version of transformers that knows its names."
                )
            _own_memory(module)
            yield Layer(module, lambda batch, length: self._calls_of(batch, length)[index], places, self._location)

    def _index(self, name: str) -> int | None:
        """Return which layer a tensor of the checkpoint belongs to, None where to none."""
        renamed = self._renamed(name)
        number = renamed.removeprefix(f"{self._path}.").partition(".")[0]
        if not renamed.startswith(f"{self._path}.") or not number.isdecimal() or int(number) >= len(self._layers):
            return None
        return int(number)

    def _places_in(
        self, module: torch.nn.Module, block: str, weights: Mapping[str, torch.Tensor]
    ) -> dict[str, list[Place]]:
        """Return the places of a layer's matrices, found once for all layers with the same tensors."""
        kind = frozenset((name.removeprefix(block), weight.shape) for name, weight in weights.items())
        if kind not in self._places:
            places = find_places(self._model, module, weights)
            self._places[kind] = {name.removeprefix(block): found for name, found in places.items()}
        return {block + name: found for name, found in self._places[kind].items()}

    def _answer_of_layers(self) -> Callable[[torch.Tensor], Any]:
        """Run the first layer on two tokens with zeros for weights, and see in which form it returns hidden states.

        Returns:
            what puts hidden states into that form; all other tensors of it are NaN.
        """
        handle = self._layers[0].register_forward_hook(lambda *given: _stop(given[-1]))
        try:
            with restored(self._model):
                fill(self._model, 0.0, self._device)
                answer = self._forward(self._dummy(1, 2))
        finally:
            handle.remove()
        if not isinstance(answer, tuple):
            return lambda hidden: hidden
        others = [torch.full_like(part, torch.nan) if _is_floating(part) else part for part in answer[1:]]
        return lambda hidden: (hidden, *others)

    def _calls_of(self, batch: int, length: int) -> list[Call]:
        """Return what the model calls each of its layers with, for B sequences of length L; kept for the next time.

        The model runs on any tokens with NaN for weights, and layers that return what they are given. Whatever is NaN
        then depends on the tokens or on another layer.
        """
        if (batch, length) not in self._calls:
            calls: list[Call] = []

            def keep(call: Call, index: int) -> Any:
                calls.append(call)
                if index == len(self._layers) - 1:
                    _stop(None)
                return self._answer(call.hidden)

            with restored(self._model), self._replaced(keep):
                fill(self._model, torch.nan, self._device)
                self._forward(self._dummy(batch, length))
            calls = [call.with_hidden(torch.empty(0)) for call in calls]
            for call in calls:
                if any(bool(tensor.isnan().any()) for tensor in _tensors((call.args, call.kwargs))):
                    raise CalibrationError(
                        f"The layers of {self._location} are given more than hidden states and positions, so that "
                        f"they cannot be calibrated one by one. {ADVICE}"
                    )
            self._calls[batch, length] = calls
        return self._calls[batch, length]

    def _dummy(self, batch: int, length: int) -> torch.Tensor:
        return torch.zeros(batch, length, dtype=torch.long, device=self._device)

    @torch.no_grad()
    def _forward(self, tokens: torch.Tensor) -> Any:
        """Run the model until something stops it, and return what that was stopped with."""
        try:
            with model_code(self._location):
                self._model(input_ids=tokens, use_cache=False)
        except _Stopped as stopped:
            return stopped.args[0]
        raise CalibrationError(f"{self._location} does not run all of its layers. {ADVICE}")

    @contextmanager
    def _replaced(self, forward: Callable[[Call, int], Any]) -> Iterator[None]:
        """Let every layer do something else for the moment, given its call and its number."""
        with ExitStack() as stack:
            for index, layer in enumerate(self._layers):
                before = layer.__dict__.get("forward")
                stack.callback(_set_forward, layer, before)
                _set_forward(layer, lambda *args, _index=index, **kwargs: forward(Call(args, kwargs), _index))
            yield


def _set_forward(layer: torch.nn.Module, forward: Callable[..., Any] | None) -> None:
    """Let an object's own forward come before that of its class; None: take it away."""
    if forward is None:
        del layer.forward
    else:
        layer.forward = forward


def _stop(found: Any) -> None:
    raise _Stopped(found)


def _is_floating(part: Any) -> bool:
    return isinstance(part, torch.Tensor) and part.is_floating_point()


def _own_memory(module: torch.nn.Module) -> None:
    """Let each parameter be contiguous, in memory that it shares with nothing."""
    for parameter in module.parameters():
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)


def _tensors(found: Any) -> Iterator[torch.Tensor]:
    """Give the tensors in nested tuples and mappings."""
    if isinstance(found, torch.Tensor):
        yield found
    elif isinstance(found, (tuple, list)):
        for part in found:
            yield from _tensors(part)
    elif isinstance(found, Mapping):
        yield from _tensors(tuple(found.values()))
