"""The training loop that the base and the fine-tunes share, and the batches each of them learns from."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from impart_core.tinyzoo import corpus
from impart_core.tinyzoo.muon import Muon
from impart_core.tinyzoo.splits import stream
from impart_core.tinyzoo.tokenizer import EOS, PAD, UNKNOWN, vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Batch = tuple[torch.Tensor, torch.Tensor]
Log = Callable[[str], object]
IGNORED = -100


@dataclass(frozen=True)
class Phase:
    """One training run: AdamW with a linear warm-up and a cosine decay to a tenth of its peak rate.

    Attributes:
        steps: optimizer steps.
        batch: sequences a step.
        peak_rate: highest learning rate.
        warmup: steps until the highest rate.
        weight_decay: decoupled decay of matrices; vectors (the norms) have none.
    """

    steps: int
    batch: int
    peak_rate: float
    warmup: int
    weight_decay: float

    def rate(self, step: int) -> float:
        """Return the learning rate of a step that is counted from 0."""
        if step < self.warmup:
            return self.peak_rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.peak_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))

    def optimizers(self, model: "PreTrainedModel") -> list[torch.optim.Optimizer]:
        """Return the optimizers of all parameters of a model."""
        return [_adam(model.parameters(), self.weight_decay)]


@dataclass(frozen=True)
class MuonPhase(Phase):
    """A run whose projections are trained by Muon and all else by AdamW, at the same rate."""

    def optimizers(self, model: "PreTrainedModel") -> list[torch.optim.Optimizer]:
        """Return Muon of the projections and AdamW of the rest."""
        named = dict(model.named_parameters())
        projections = [parameter for name, parameter in named.items() if name.endswith("proj.weight")]
        rest = [parameter for name, parameter in named.items() if not name.endswith("proj.weight")]
        return [Muon(projections), _adam(rest, self.weight_decay)]


def _adam(parameters: Iterable[torch.nn.Parameter], weight_decay: float) -> torch.optim.Optimizer:
    given = list(parameters)
    groups = [
        {"params": [p for p in given if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in given if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98))


def encode(text: str) -> list[int]:
    """Return the token ids of a text, one a character."""
    ids = vocabulary()
    return [ids.get(character, ids[UNKNOWN]) for character in text]


def corpus_batches(batch: int, length: int, seed: int) -> Iterator[Batch]:
    """Yield (batch, length) blocks of pre-training text; the labels are the tokens themselves."""
    lines, pool, ids = corpus.lines(seed), "", vocabulary()
    while True:
        while len(pool) < batch * length:
            pool += "".join(next(lines) for _ in range(200))
        block = torch.tensor([ids[character] for character in pool[: batch * length]]).view(batch, length)
        pool = pool[batch * length :]
        yield block, block


def task_batches(task: str, batch: int, seed: int) -> Iterator[Batch]:
    """Yield (batch, longest) prompts with their answers; only answers, line feed and end token are labels."""
    ids = vocabulary()
    items = stream(task, "train", seed)
    while True:
        pairs = [
            (encode(item.prompt), [*encode(f" {item.answer}\n"), ids[EOS]])
            for item, _ in zip(items, range(batch), strict=False)
        ]
        yield padded(pairs, ids[PAD])


def padded(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], pad: int) -> Batch:
    """Return prompts with their answers, padded on the right to the longest; only the answers are labels."""
    longest = max(len(prompt) + len(answer) for prompt, answer in pairs)
    tokens = torch.full((len(pairs), longest), pad)
    labels = torch.full((len(pairs), longest), IGNORED)
    for row, (prompt, answer) in enumerate(pairs):
        end = len(prompt) + len(answer)
        tokens[row, :end] = torch.tensor([*prompt, *answer])
        labels[row, len(prompt) : end] = torch.tensor(answer)
    return tokens, labels


def fit(model: "PreTrainedModel", batches: Iterator[Batch], phase: Phase, name: str, log: Log) -> None:
    """Train all parameters of a model in place, in float32.

    Args:
        model: the model to train.
        batches: token ids and labels, both (batch, length); padding is on the right, so that causal
            attention alone keeps it out of sight.
        phase: how long and how fast.
        name: what the progress lines call this run.
        log: receives a line of progress every 25 steps.
    """
    optimizers = phase.optimizers(model)
    model.train()
    started, total = time.perf_counter(), 0.0
    for step, (tokens, labels) in zip(range(phase.steps), batches, strict=False):
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = phase.rate(step)
        logits = model(input_ids=tokens, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
        )
        model.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        total += loss.item()
        if (step + 1) % 25 == 0 or step + 1 == phase.steps:
            seconds = time.perf_counter() - started
            left = seconds / (step + 1) * (phase.steps - step - 1)
            mean = total / (step % 25 + 1)
            log(f"{name}: step {step + 1}/{phase.steps}, loss {mean:.4f}, {seconds:.0f} s, {left:.0f} s left")
            total = 0.0
    model.eval()
