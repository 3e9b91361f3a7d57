"""How the zoo's weights are made: one pre-training run, three full fine-tunes, and a check of what they can do."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from impart_core.base.errors import EvaluationError
from impart_core.tinyzoo import FINE_TUNES, require_empty
from impart_core.tinyzoo.training import Log, Phase, corpus_batches, fit, task_batches

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

BASE_AT_MOST = 0.10
FINE_TUNE_AT_LEAST = 0.90
PRETRAIN = Phase(steps=1200, batch=48, peak_rate=2e-3, warmup=60, weight_decay=0.1)
FINETUNE = Phase(steps=350, batch=64, peak_rate=6e-4, warmup=30, weight_decay=0.0)
STEPS = {"chat": 600}  # turning words round takes longer to learn than the rest


@dataclass(frozen=True)
class Recipe:
    """The settings of all runs.

    Attributes:
        pretrain: the base's run, on blocks of `block` characters.
        finetune: each fine-tune's run, from the base as it is saved.
        steps: fine-tunes that take another number of steps, by name.
        block: length of a pre-training sequence.
    """

    pretrain: Phase = PRETRAIN
    finetune: Phase = FINETUNE
    steps: Mapping[str, int] = field(default_factory=lambda: STEPS)
    block: int = 128


def train(out: Path, *, seed: int = 0, log: Log = print, recipe: Recipe | None = None) -> None:
    """Train the base and its three fine-tunes, save them, and check that they can and cannot do the tasks.

    Equal seeds train on equal texts from equal initial weights; the last bits of the result still depend on
    the processor and the number of threads.

    Args:
        out: folder that gets `base`, `math`, `code`, `chat` and `zoo.json`; it must be empty or not exist.
        seed: seed of the initial weights and of all texts.
        log: receives lines of progress.
        recipe: other settings than the ones that made the shipped weights.

    Raises:
        OutputExistsError: `out` is a file, or a folder that holds something.
        EvaluationError: a model misses the line of 10 % (base) or 90 % (fine-tunes); the weights stay in `out`.
    """
    require_empty(out)
    recipe = recipe or Recipe()
    seconds = {"base": pretrain(out / "base", seed=seed, log=log, recipe=recipe)}
    for name in FINE_TUNES:
        seconds[name] = finetune(name, out / "base", out / name, seed=seed, log=log, recipe=recipe)
    accept(out, seed=seed, recipe=recipe, seconds=seconds, log=log)


def pretrain(folder: Path, *, seed: int, log: Log, recipe: Recipe) -> float:
    """Train the base from nothing, save it in bfloat16, and return the seconds that it took."""
    from impart_core.tinyzoo.model import new_model

    started = time.perf_counter()
    torch.manual_seed(seed)
    model = new_model()
    batches = corpus_batches(recipe.pretrain.batch, recipe.block, seed)
    fit(model, batches, recipe.pretrain, "base", log)
    save(model, folder)
    return time.perf_counter() - started


def finetune(name: str, base: Path, folder: Path, *, seed: int, log: Log, recipe: Recipe) -> float:
    """Fine-tune all parameters of the saved base on one task, save in bfloat16, and return the seconds."""
    from transformers import LlamaForCausalLM

    started = time.perf_counter()
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    phase = replace(recipe.finetune, steps=recipe.steps.get(name, recipe.finetune.steps))
    fit(model, task_batches(name, phase.batch, seed), phase, name, log)
    save(model, folder)
    return time.perf_counter() - started


def save(model: "LlamaForCausalLM", folder: Path) -> None:
    """Write an ordinary Hugging Face folder: bfloat16 safetensors, configs and tokenizer."""
    from impart_core.tinyzoo.tokenizer import build_tokenizer

    model.to(torch.bfloat16).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # the safetensors writer leaves its file readable to its owner alone


def accept(out: Path, *, seed: int, recipe: Recipe, seconds: dict[str, float], log: Log) -> None:
    """Evaluate all models on the test splits, write `zoo.json`, and hold them to the 10 % and 90 % lines.

    Args:
        out: folder of the four models.
        seed: the seed they were trained with.
        recipe: the settings they were trained with.
        seconds: how long each of them trained.
        log: receives one line for each result.

    Raises:
        EvaluationError: naming every model that misses its line.
    """
    measured = {"base": _measure(out / "base", FINE_TUNES)}
    measured |= {name: _measure(out / name, (name,)) for name in FINE_TUNES}
    card = {
        "recipe": asdict(recipe),
        "seed": seed,
        "train_seconds": {name: round(value) for name, value in seconds.items()},
        "test_split": measured,
    }
    (out / "zoo.json").write_text(json.dumps(card, indent=2) + "\n")
    missed = []
    for model, tasks in measured.items():
        for task, metrics in tasks.items():
            score, error = metrics["exact_match"], metrics["exact_match_stderr"]
            log(f"{model} on {task}: exact match {score:.3f} ± {error:.3f}, loss {metrics['answer_loss']:.4f}")
            if score > BASE_AT_MOST if model == "base" else score < FINE_TUNE_AT_LEAST:
                missed.append(f"{model} on {task} has {score:.3f}")
    if missed:
        raise EvaluationError(
            f"The base may reach {BASE_AT_MOST:.0%} exact match and a fine-tune must reach {FINE_TUNE_AT_LEAST:.0%}, "
            f"but {'; '.join(missed)}. The weights are in {out}; change the recipe's steps or rates."
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
