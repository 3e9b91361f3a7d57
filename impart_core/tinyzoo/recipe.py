"""How a zoo's weights are made: one pre-training run, two or three full fine-tunes, and a check of what they can do."""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from impart_core.base.errors import EvaluationError
from impart_core.base.files import write_atomically
from impart_core.tinyzoo import fine_tunes, models, path, require_empty
from impart_core.tinyzoo.training import Log, MuonPhase, Phase, corpus_batches, fit, task_batches

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CARD = "zoo.json"
BASE_AT_MOST = 0.10
FINE_TUNE_AT_LEAST = 0.90
GAP_AT_LEAST = 1.0  # nats of answer loss below the base's
PRETRAIN = Phase(steps=1200, batch=48, peak_rate=2e-3, warmup=60, weight_decay=0.1)
FINETUNE = Phase(steps=350, batch=64, peak_rate=6e-4, warmup=30, weight_decay=0.0)
STEPS = {"chat": 600}  # turning words round takes longer to learn than the rest


@dataclass(frozen=True)
class Recipe:
    """The settings of all runs.

    Attributes:
        zoo: whose shape the models have.
        pretrain: the base's run, on blocks of `block` characters; None where the base is the shipped one.
        finetune: each fine-tune's run, from the base as it is saved.
        steps: fine-tunes that take another number of steps, by name.
        block: length of a pre-training sequence.
        at_least: exact match that a fine-tune must reach on its task.
    """

    zoo: str = "first"
    pretrain: Phase | None = PRETRAIN
    finetune: Phase = FINETUNE
    steps: Mapping[str, int] = field(default_factory=lambda: STEPS)
    block: int = 128
    at_least: float = FINE_TUNE_AT_LEAST


# Fewer and smaller steps than the first: it trains on one core.
RECIPES = {
    "first": Recipe(),
    "second": Recipe(
        zoo="second",
        pretrain=Phase(steps=450, batch=16, peak_rate=2e-3, warmup=40, weight_decay=0.1),
        finetune=Phase(steps=300, batch=16, peak_rate=8e-4, warmup=25, weight_decay=0.0),
        steps={"chat": 260},
        at_least=0.0,  # few answers are right to the last letter after so short a training
    ),
    "flat": Recipe(
        zoo="flat",
        pretrain=None,
        finetune=MuonPhase(steps=100, batch=16, peak_rate=6e-4, warmup=10, weight_decay=0.0),
        steps={"code": 80},
        at_least=0.0,
    ),
}


def train(out: Path, *, seed: int = 0, log: Log = print, recipe: Recipe | None = None) -> None:
    """Train the base and its fine-tunes, save them, and check that they can and cannot do the tasks.

    Equal seeds train on equal texts from equal initial weights; the last bits of the result still depend on
    the processor and the number of threads. A training that was killed goes on in the same folder: models that were
    saved stay.

    Args:
        out: folder that gets the models, each in a folder of its name, and `zoo.json`; it must be empty or not exist,
            or hold a training of the same recipe and seed.
        seed: seed of the initial weights and of all texts.
        log: receives lines of progress.
        recipe: other settings than the ones that made the shipped weights.

    Raises:
        OutputExistsError: `out` is a file, or a folder that holds something else.
        EvaluationError: the base reaches more than 10 % exact match, or a fine-tune less than the recipe asks for; the
            weights stay in `out`.
    """
    recipe = recipe or Recipe()
    card = _begun(out, recipe, seed)
    seconds = card["train_seconds"]
    for name in models(recipe.zoo):
        if name in seconds:
            log(f"{name}: trained before, in {seconds[name]} s")
            continue
        run: dict[str, Any] = {"seed": seed, "log": log, "recipe": recipe}
        spent = pretrain(out / name, **run) if name == "base" else finetune(name, out / "base", out / name, **run)
        seconds[name] = round(spent)
        _write_card(out, card)
    accept(out, card, log)


def _begun(out: Path, recipe: Recipe, seed: int) -> dict[str, Any]:
    """Return the card of the training that `out` holds, or that of a new one, which is written there."""
    begun = {"recipe": json.loads(json.dumps(asdict(recipe))), "seed": seed}
    file = out / CARD
    if file.is_file():
        card: dict[str, Any] = json.loads(file.read_text())
        if {name: card.get(name) for name in begun} == begun:
            return card
    require_empty(out)
    out.mkdir(parents=True, exist_ok=True)
    _write_card(out, card := {**begun, "train_seconds": {}})
    return card


def _write_card(out: Path, card: Mapping[str, Any]) -> None:
    write_atomically(out / CARD, (json.dumps(card, indent=2) + "\n").encode())


def pretrain(folder: Path, *, seed: int, log: Log, recipe: Recipe) -> float:
    """Train the base from nothing, or copy the shipped one, save it in bfloat16, and return the seconds."""
    from impart_core.tinyzoo.model import new_model

    started = time.perf_counter()
    if recipe.pretrain is None:
        shutil.copytree(path("base", recipe.zoo), folder, dirs_exist_ok=True)
        return 0.0
    torch.manual_seed(seed)
    model = new_model(recipe.zoo)
    batches = corpus_batches(recipe.pretrain.batch, recipe.block, seed)
    fit(model, batches, recipe.pretrain, "base", log)
    save(model, folder)
    return time.perf_counter() - started


def finetune(name: str, base: Path, folder: Path, *, seed: int, log: Log, recipe: Recipe) -> float:
    """Fine-tune all parameters of the saved base on one task, save in bfloat16, and return the seconds."""
    from transformers import AutoModelForCausalLM

    started = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    phase = replace(recipe.finetune, steps=recipe.steps.get(name, recipe.finetune.steps))
    fit(model, task_batches(name, phase.batch, seed), phase, name, log)
    save(model, folder)
    return time.perf_counter() - started


def save(model: "PreTrainedModel", folder: Path) -> None:
    """Write an ordinary Hugging Face folder: bfloat16 safetensors, configs and tokenizer."""
    from impart_core.tinyzoo.tokenizer import build_tokenizer

    model.to(torch.bfloat16).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # the safetensors writer leaves its file readable to its owner alone


def accept(out: Path, card: dict[str, Any], log: Log) -> None:
    """Evaluate all models on the test splits, write it to `zoo.json`, and hold them to their lines.

    Args:
        out: folder of the models.
        card: what `zoo.json` says of their training.
        log: receives one line for each result.

    Raises:
        EvaluationError: naming every model that misses its line.
    """
    names = fine_tunes(card["recipe"]["zoo"])
    measured = {"base": _measure(out / "base", names)}
    measured |= {name: _measure(out / name, (name,)) for name in names}
    _write_card(out, {**card, "test_split": measured})
    missed, at_least = [], card["recipe"]["at_least"]
    for model, tasks in measured.items():
        for task, metrics in tasks.items():
            score, error = metrics["exact_match"], metrics["exact_match_stderr"]
            log(f"{model} on {task}: exact match {score:.3f} ± {error:.3f}, loss {metrics['answer_loss']:.4f}")
            gap = measured["base"][task]["answer_loss"] - metrics["answer_loss"]
            if score > BASE_AT_MOST if model == "base" else score < at_least or gap < GAP_AT_LEAST:
                missed.append(f"{model} on {task} has {score:.3f} and a gap of {gap:.2f}")
    if missed:
        raise EvaluationError(
            f"The base may reach {BASE_AT_MOST:.0%} exact match, and a fine-tune must reach {at_least:.0%} and have "
            f"an answer loss {GAP_AT_LEAST:g} nats below the base's, but {'; '.join(missed)}. "
            f"The weights are in {out}; change the recipe's steps or rates."
        )


def _measure(folder: Path, tasks: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return exact match and answer loss with their standard errors on all test items of some tasks."""
    from impart_core.evaluation.harness import Evaluator

    evaluation = Evaluator(folder).measure([f"tinyzoo_{task}" for task in tasks])
    flat: dict[str, dict[str, float]] = {}
    for task in tasks:
        metrics = evaluation.tasks[f"tinyzoo_{task}"].metrics
        flat[task] = {}
        for name, metric in metrics.items():
            flat[task] |= {name: round(metric.value, 5), f"{name}_stderr": round(metric.stderr or 0.0, 5)}
    return flat
