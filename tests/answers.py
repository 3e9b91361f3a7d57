"""Answer loss of the zoos' fine-tunes in this process: no store, no generation, as fast as the models run."""

from functools import cached_property, partial
from typing import Any

import torch

from impart_core.blocks.coding import calibration_of
from impart_core.blocks.encode import budgets_of
from impart_core.blocks.request import CompressConfig
from impart_core.calibrate.logits import load_causal_model, predictions
from impart_core.calibrate.sensitivity import POINTS, Sums
from impart_core.calibrate.text import CalibrationText, read_tokens
from impart_core.checkpoint.index import open_checkpoint
from impart_core.checkpoint.layout import Block, Role, group_blocks
from impart_core.checkpoint.pairing import Pairs
from impart_core.checkpoint.preflight import preflight
from impart_core.checkpoint.reader import read_tensor
from impart_core.delta.extract import add_delta
from impart_core.delta.fidelity import Fidelity, fidelity_of
from impart_core.delta.load import load_block
from impart_core.delta.quality import flatness_of
from impart_core.delta.svd import decompose
from impart_core.evaluation.result import Split
from impart_core.methods import METHODS
from impart_core.methods.base import Projection
from impart_core.quantization.kfac import Sensitivity
from impart_core.tinyzoo.splits import SPLIT_ITEMS, items
from tests.bench.study.grid import ZOOS
from tests.impart_core.pipeline import config_of

_BATCH = 50


class FineTune:
    """A fine-tune of a zoo, with the decompositions of its projections' deltas held in memory.

    Attributes:
        energies: ‖ΔW‖² and ‖W‖² of each projection, W being the base's.
        fidelities: what the latest codes keep of each projection.
    """

    def __init__(self, task: str, zoo: str = "first", text: CalibrationText | None = None) -> None:
        """Load it and decompose its projections; every singular triplet is kept.

        Args:
            task: "math", "code" or "chat".
            zoo: "first", "second", "flat" or "gemma".
            text: what methods are calibrated on that are told of sensitivity; None: the task's.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._task, self._zoo, self._text = task, zoo, text or CalibrationText(source=f"tinyzoo:{task}")
        self._pairs, self._blocks = pairs_of(task, zoo)
        self._deltas = deltas_of(task, zoo)
        self._factors = {name: decompose(delta, name) for name, (_, delta) in self._deltas.items()}
        self.energies = {name: (_energy(delta), _energy(base)) for name, (base, delta) in self._deltas.items()}
        self.fidelities: dict[str, Fidelity] = {}
        self._tokenizer = AutoTokenizer.from_pretrained(ZOOS[zoo].path(task))
        self._model = AutoModelForCausalLM.from_pretrained(ZOOS[zoo].path(task), dtype=torch.float32).eval()

    @cached_property
    def flatness(self) -> dict[str, float]:
        """How flat each projection's delta is; see `flatness_of`."""
        return {name: flatness_of(delta) for name, (_, delta) in self._deltas.items()}

    @cached_property
    def _sensitivity(self) -> dict[str, Sensitivity]:
        """How sensitive predictions are to each projection; all else is fine-tuned, as in a run."""
        finetuned, device = open_checkpoint(ZOOS[self._zoo].path(self._task)), torch.device("cpu")
        tokens = read_tokens(self._text, finetuned)
        tensors = {name: read_tensor(info) for name, info in finetuned.tensors.items()}
        wanted = torch.cat(list(predictions(load_causal_model(finetuned, tensors, device), tokens.long())))
        sums = Sums()
        for point in POINTS:
            at = {
                name: add_delta(base, point * delta, tensors[name].dtype)
                for name, (base, delta) in self._deltas.items()
            }
            sums.add(load_causal_model(finetuned, tensors | at, device), at, tokens, wanted)
        return sums.sensitivities()

    def compressed(self, cr: float, method: str = "impart", seed: int = 0, **options: Any) -> "FineTune":
        """Put what a method keeps of the projections' deltas in their place; everything else stays fine-tuned."""
        config = config_of(cr, method=method, seed=seed, options=options)
        sensitivity = self._sensitivity if calibration_of(config) == "gradients" else {}
        with torch.no_grad():
            self._compress(config, sensitivity)
        return self

    def without_deltas(self) -> "FineTune":
        """Put the base's projections in their place; everything else stays fine-tuned."""
        parameters = dict(self._model.named_parameters())
        with torch.no_grad():
            for name, (base, _) in self._deltas.items():
                parameters[name].copy_(base.float())
        return self

    def _compress(self, config: CompressConfig, sensitivity: dict[str, Sensitivity]) -> None:
        parameters, method = dict(self._model.named_parameters()), METHODS.get(config.method)
        given_out = [budgets_of(self._pairs, block, config).sizes for block in self._blocks]
        budgets = {name: size for sizes in given_out for name, size in sizes.items()}
        for name, (base, delta) in self._deltas.items():
            m, n = delta.shape
            given = partial(_same, delta), partial(_same, self._factors[name])
            told = {"budget": budgets.get(name), "sensitivity": sensitivity.get(name)}
            projection = Projection(name, (m, n), *given, **told)
            codes = method.encode(projection, config)
            decoded = method.decode(codes, name, (m, n), config.seed)
            self.fidelities[name] = fidelity_of(delta, decoded)
            parameters[name].copy_(base.float() + decoded)

    def answer_loss(self, split: Split, count: int = SPLIT_ITEMS) -> float:
        """Return the answer loss of the model as it is now; see `answer_loss`."""
        return answer_loss(self._model, self._tokenizer, self._task, split, count)

    def answer_losses(self, split: Split, count: int = SPLIT_ITEMS) -> list[float]:
        """Return the answer loss of each item, in an order that depends on the items alone."""
        return answer_losses(self._model, self._tokenizer, self._task, split, count)


def deltas_of(task: str, zoo: str = "first") -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return the base's weights and the delta of each projection of a fine-tune of a zoo."""
    pairs, _ = pairs_of(task, zoo)
    names = tuple(name for name, pair in pairs.items() if pair.role is Role.PROJECTION)
    loaded = load_block(pairs, Block("all", names), ({}, {}))
    return {one.tensor: (one.base, one.delta()) for one in loaded if one.base is not None}


def pairs_of(task: str, zoo: str) -> tuple[Pairs, list[Block]]:
    """Return the pairs of a fine-tune's tensors by name, and the blocks in which they are worked on."""
    base, finetuned = (open_checkpoint(ZOOS[zoo].path(name)) for name in ("base", task))
    return preflight(base, finetuned), group_blocks(finetuned.tensors)


def base_loss(task: str, zoo: str, split: Split, count: int = SPLIT_ITEMS) -> float:
    """Return the answer loss of a zoo's base; see `answer_loss`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = ZOOS[zoo].path("base")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return answer_loss(model, AutoTokenizer.from_pretrained(folder), task, split, count)


def answer_loss(model: Any, tokenizer: Any, task: str, split: Split, count: int = SPLIT_ITEMS) -> float:
    """Return the mean negative log-likelihood of a split's right answers, in nats a token, as the zoo's tasks have it.

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer.
        task: "math", "code" or "chat".
        split: which items.
        count: how many items, from the first on.
    """
    losses = answer_losses(model, tokenizer, task, split, count)
    return sum(losses) / len(losses)


@torch.no_grad()
def answer_losses(model: Any, tokenizer: Any, task: str, split: Split, count: int) -> list[float]:
    """Return the loss of each item, those with few tokens first; see `answer_loss`."""
    rows = [
        (tokenizer(one.prompt).input_ids, tokenizer(f" {one.answer}\n", add_special_tokens=False).input_ids)
        for one in items(task, split, count)
    ]
    rows.sort(key=lambda row: len(row[0]) + len(row[1]))  # little padding
    return [loss for start in range(0, len(rows), _BATCH) for loss in _losses(model, rows[start : start + _BATCH])]


def _losses(model: Any, rows: list[tuple[list[int], list[int]]]) -> list[float]:
    tokens = torch.zeros(len(rows), max(len(prompt) + len(answer) for prompt, answer in rows), dtype=torch.long)
    for line, (prompt, answer) in zip(tokens, rows, strict=True):
        line[: len(prompt) + len(answer)] = torch.tensor(prompt + answer)
    hidden = model.model(input_ids=tokens).last_hidden_state
    losses = []
    for line, (prompt, answer) in zip(hidden, rows, strict=True):  # logits of answers only: vocabularies may be large
        logits = model.lm_head(line[len(prompt) - 1 : len(prompt) + len(answer) - 1])
        losses.append(-float(logits.log_softmax(dim=-1)[range(len(answer)), answer].mean()))
    return losses


def _energy(matrix: torch.Tensor | None) -> float:
    assert matrix is not None, "every projection has a base"
    return float(matrix.float().square().sum())


def _same(value: Any) -> Any:
    return value
