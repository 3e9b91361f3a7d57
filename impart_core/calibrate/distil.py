"""Distillation of gains: numbers that a delta stores anyway are trained until the model's logits are the fine-tune's.

BitDelta (Liu et al. 2024, arXiv 2402.10193, §3.2) does so with its scales. Here every method's decoded delta is a
function of gains (see `methods.terms`), which begin at 1 and of which nothing is stored but what they multiply.

Minimised is the divergence of predictions, each token weighted by how far the fine-tune foresaw the one that follows in
the text. A fine-tune that learned answers predicts prompts no better than by accident, and the few gains would be spent
on that.
"""

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch.nn.utils import parametrize

from impart_core.calibrate.layer import batch_size
from impart_core.calibrate.logits import divergence, foreseen, logits_of
from impart_core.delta.extract import add_delta
from impart_core.methods.terms import Terms

logger = logging.getLogger(__name__)

SEGMENTS = 10  # of a training: at the end of each its gains are tried, and its state is kept
LEAST_GAIN = 1 / 64  # of a scale that may not become zero or negative
BATCH = 4  # sequences a step
_HELD_OUT = 10  # one in so many sequences is not trained on, but decides which gains are the best
_LAST_RATE = 0.1  # of the first
_LEAST_WEIGHT = 1e-9  # of text of which nothing was foreseen


@dataclass(frozen=True)
class Schedule:
    """How gains are trained by Adam, whose rate falls in a straight line.

    Attributes:
        steps: optimizer steps.
        rate: the first rate, by which a gain moves a step.
        seed: of the order of sequences.
    """

    steps: int
    rate: float
    seed: int


@dataclass(frozen=True)
class Trainable:
    """A tensor of the model whose delta has gains.

    Attributes:
        base: what the delta is added to, any floating dtype.
        dtype: that of what is rebuilt.
        terms: the delta, whose matrix may be a vector's, (m, 1).
        stored: the delta as it is stored for gains, (count,).
    """

    base: torch.Tensor
    dtype: torch.dtype
    terms: Terms
    stored: Callable[[torch.Tensor], Terms]

    @property
    def rebuilt(self) -> torch.Tensor:
        """What the tensor is rebuilt to while all gains are 1, as float32."""
        delta = self.terms.at(torch.ones(self.terms.count)).reshape(self.base.shape)
        return add_delta(self.base, delta, self.dtype).float()


@dataclass(frozen=True)
class State:
    """A training after some steps: all that the rest of it depends on.

    Attributes:
        step: steps done.
        gains: of all tensors one after the other, float32, (N,).
        first: Adam's first moment, likewise.
        second: its second.
        best: the gains with the least error on what is held out.
        best_step: after how many steps these were found; 0: no others than 1 are better.
        untrained: the mean weighted divergence of what is held out, in nats a token, while gains are 1.
        least: that of the best.
    """

    step: int
    gains: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    best: torch.Tensor
    best_step: int
    untrained: float
    least: float

    @classmethod
    def begin(cls, count: int, untrained: float) -> Self:
        """Return the state before the first step."""
        ones, zeros = torch.ones(count), torch.zeros(count)
        return cls(0, ones, zeros, zeros, ones, 0, untrained, untrained)


class Distillation:
    """A model with gains, the sequences that it is trained on, and what is to be predicted for them."""

    def __init__(
        self,
        model: Any,
        trainables: Mapping[str, Callable[[], Trainable]],
        tokens: torch.Tensor,
        wanted: torch.Tensor,
        schedule: Schedule,
    ) -> None:
        """Put gains into a model.

        Args:
            model: as `load_causal_model` returns it, all tensors as they are rebuilt.
            trainables: gives what has gains, by the checkpoint's names: one is held at a time. A tensor that
                transformers holds under another name or in another form stays as it is.
            tokens: (sequences, length), an integer dtype; a tenth of the sequences is held out.
            wanted: see `predictions`, (sequences, length, 2, k).
            schedule: how it is trained.
        """
        device = next(model.parameters()).device
        self._order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(schedule.seed))
        self._model, self._schedule, self._device = model, schedule, device
        self._tokens, self._wanted = tokens.long(), wanted
        self._held_out = math.ceil(len(tokens) / _HELD_OUT)
        self._parts: dict[str, _Gained] = {}
        self._stored: dict[str, Callable[[torch.Tensor], Terms]] = {}
        self.count = 0  # of gains
        self.unplaced = 0  # gains of tensors that stay as they are
        for name, make in sorted(trainables.items()):
            self._give_gains(name, make())

    def _give_gains(self, name: str, trainable: Trainable) -> None:
        """Let the model's tensor be made with gains, if it holds it and there are some."""
        own = slice(self.count, self.count + trainable.terms.count)
        if own.start == own.stop:
            return
        part = _Gained(trainable.terms, own, self._device)
        if _put(self._model, name, trainable, part):
            self._parts[name], self._stored[name], self.count = part, trainable.stored, own.stop
        else:
            self.unplaced += trainable.terms.count

    def begin(self) -> State:
        """Return the state before the first step."""
        return State.begin(self.count, self._error(torch.ones(self.count)))

    def advance(self, state: State) -> State:
        """Return the state after the next segment of the training."""
        steps = self._schedule.steps
        last = next(end for end in ends_of_segments(steps) if end > state.step)
        gains = torch.nn.Parameter(state.gains.to(self._device, copy=True))
        optimizer = torch.optim.Adam([gains], lr=self._schedule.rate)
        moments = {
            name: moment.to(self._device, copy=True)
            for name, moment in (("exp_avg", state.first), ("exp_avg_sq", state.second))
        }
        optimizer.state[gains] = {"step": torch.tensor(float(state.step)), **moments}
        for step in range(state.step, last):
            optimizer.param_groups[0]["lr"] = self._schedule.rate * (1 - (1 - _LAST_RATE) * step / steps)
            gains.grad = self._gradient(gains, self._batch(step))
            optimizer.step()
            with torch.no_grad():
                gains.clamp_(min=LEAST_GAIN)
        found = gains.detach().cpu().clone()
        first, second = (optimizer.state[gains][name].cpu().clone() for name in moments)
        state = replace(state, step=last, gains=found, first=first, second=second)
        error = self._error(found)
        return replace(state, best=found, best_step=last, least=error) if error < state.least else state

    def result(self, state: State) -> tuple[dict[str, torch.Tensor], float]:
        """Return the gains that are stored, by tensor, and the error on what is held out with numbers as stored.

        None are where rounding leaves no more of what they gained: what is stored is never worse than without.
        """
        if state.best_step == 0:
            return {}, state.untrained
        gains = {name: state.best[part.own] for name, part in self._parts.items()}
        for name, part in self._parts.items():
            part.take(self._stored[name](gains[name]))
        error = self._error(torch.ones(self.count))
        return (gains, error) if error < state.untrained else ({}, state.untrained)

    def _batch(self, step: int) -> torch.Tensor:
        """Return which sequences a step is trained on: every one comes once before any comes again."""
        trained_on = torch.arange(self._held_out if len(self._tokens) > 1 else 0, len(self._tokens))
        steps = math.ceil(len(trained_on) / BATCH)
        generator = torch.Generator().manual_seed(self._schedule.seed + 1 + step // steps)
        order = torch.randperm(len(trained_on), generator=generator)
        return trained_on[order[BATCH * (step % steps) :][:BATCH]]

    def _gradient(self, gains: torch.Tensor, sequences: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the weighted mean divergence of these sequences, a few at a time."""
        total = torch.zeros_like(gains)
        for some in torch.split(sequences, batch_size(self._tokens.shape[1])):
            (found,) = torch.autograd.grad(self._divergence(gains, some), gains)
            total += found
        return total / self._weight(sequences)

    @torch.no_grad()
    def _error(self, gains: torch.Tensor) -> float:
        """Return the weighted mean divergence of the sequences that are held out."""
        gains, sequences = gains.to(self._device), torch.arange(self._held_out)
        parts = torch.split(sequences, batch_size(self._tokens.shape[1]))
        return sum(float(self._divergence(gains, some)) for some in parts) / self._weight(sequences)

    def _divergence(self, gains: torch.Tensor, sequences: torch.Tensor) -> torch.Tensor:
        """Return the sum of weighted divergences over the tokens of some sequences."""
        for part in self._parts.values():
            part.gains = gains[part.own]
        tokens, wanted = (some.to(self._device) for some in self._of(sequences))
        return (foreseen(wanted, tokens) * divergence(logits_of(self._model, tokens), wanted)).sum()

    def _weight(self, sequences: torch.Tensor) -> float:
        """Return the sum of the weights of some sequences' tokens."""
        tokens, wanted = self._of(sequences)
        return max(float(foreseen(wanted, tokens).sum()), _LEAST_WEIGHT)

    def _of(self, sequences: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens and predictions of some sequences, by their numbers in the order of the seed."""
        own = self._order[sequences]
        return self._tokens[own], self._wanted[own]


class _Gained(torch.nn.Module):
    """Makes a weight of a base's: adds the delta at gains, which are set from outside."""

    gains: torch.Tensor

    def __init__(self, terms: Terms, own: slice, device: torch.device) -> None:
        super().__init__()
        self.own, self._device = own, device
        self.take(terms)

    def take(self, terms: Terms) -> None:
        """Use these terms from now on."""
        self._delta = terms.held(self._device)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.float() + self._delta(self.gains).reshape(weight.shape)


def ends_of_segments(steps: int) -> list[int]:
    """Return after how many steps each segment of a training ends, rising."""
    return sorted({math.ceil(steps * number / SEGMENTS) for number in range(1, SEGMENTS + 1)})


def _put(model: Any, name: str, trainable: Trainable, part: _Gained) -> bool:
    """Let a model's weight be made of the base's; return whether it holds this tensor, and as the checkpoint does."""
    for full in (name, f"{model.base_model_prefix}.{name}"):
        path, _, attribute = full.rpartition(".")
        with suppress(AttributeError):
            module = model.get_submodule(path)
            if torch.equal(getattr(module, attribute).cpu(), trainable.rebuilt):
                if parametrize.is_parametrized(module, attribute):
                    parametrize.remove_parametrizations(module, attribute, leave_parametrized=False)
                device = getattr(module, attribute).device
                setattr(module, attribute, torch.nn.Parameter(trainable.base.to(device), requires_grad=False))
                parametrize.register_parametrization(module, attribute, part, unsafe=True)
                return True
    return False
