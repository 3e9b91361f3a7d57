"""`make experts`: what few calibration tokens do to a mixture of experts, with and without shrunk Hessians.

Trains a Mixtral of 8 experts (two a token, two layers, 128 columns) on the text of the tiny zoo and fine-tunes it on
one of its tasks, which takes some minutes; the models stay in a folder. Then the fine-tune is compressed after more and
more tokens, of another text for each seed. Prints a Markdown table of answer loss on the test split, mean ± standard
error over seeds. "trusted" rows take Hessians as they are summed, without shrinking them.
"""

import argparse
import statistics
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from impart_core.apply.dense import reconstruct
from impart_core.calibrate.text import CalibrationText, read_tokens
from impart_core.checkpoint.index import open_checkpoint
from impart_core.store.store import Store
from impart_core.tinyzoo.recipe import FINETUNE, PRETRAIN, save
from impart_core.tinyzoo.tokenizer import BOS, EOS, MAX_POSITIONS, PAD, vocabulary
from impart_core.tinyzoo.training import corpus_batches, fit, task_batches
from tests.answers import answer_loss
from tests.bench.arguments import at_least_one, ratio, read_figures, require_place, write_figures
from tests.impart_core.pipeline import compress, config_of

TASK = "math"
TOKENS = (0, 8, 64, 512, 20_000)  # 0: nothing is known, codes are the nearest
OPTIONS = {"ladder": "3x8,2"}
_LENGTH = 128  # of a sequence of calibration text


def main() -> None:
    """Train the models that are not there yet, measure what is not in the output file yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("experts.json"), help="where the results go")
    parser.add_argument("--models", type=Path, default=Path("demo/experts"), help="where the trained models lie")
    parser.add_argument("--seeds", type=at_least_one, default=5, help="how many texts, and seeds of the masks")
    parser.add_argument("--method", default="delta-come", help="a method with a ladder")
    parser.add_argument("--cr", type=ratio, default=32.0, help="which ratio")
    asked = parser.parse_args()
    require_place(parser, asked.out)
    found: dict[str, list[float]] = read_figures(parser, asked.out)
    torch.set_num_threads(1)
    _train(asked.models)
    for seed, tokens, trusted in product(range(asked.seeds), TOKENS, (False, True)):
        losses = found.setdefault(_key(asked.method, tokens, trusted), [])
        if len(losses) == seed and not (trusted and not tokens):
            losses.append(_measure(asked.models, asked.method, asked.cr, tokens, trusted, seed))
            write_figures(asked.out, found)
    print(*(f"{name}: answer loss {_loss(asked.models / name):.3f}" for name in ("base", TASK)), sep="\n")
    print(_table(found, asked.method))


def _train(folder: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    if (folder / TASK).exists():
        return
    ids = vocabulary()
    torch.manual_seed(0)
    model = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=len(ids),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=8,
            num_experts_per_tok=2,
            max_position_embeddings=MAX_POSITIONS,
            sliding_window=None,
            tie_word_embeddings=False,
            pad_token_id=ids[PAD],
            bos_token_id=ids[BOS],
            eos_token_id=ids[EOS],
        )
    )
    fit(model, corpus_batches(32, 96, 0), replace(PRETRAIN, steps=400), "base", print)  # type: ignore[arg-type]
    save(model, folder / "base")  # type: ignore[arg-type]
    model = MixtralForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    fit(model, task_batches(TASK, 48, 0), replace(FINETUNE, steps=350), TASK, print)  # type: ignore[arg-type]
    save(model, folder / TASK)  # type: ignore[arg-type]


def _measure(models: Path, method: str, cr: float, tokens: int, trusted: bool, seed: int) -> float:
    """Compress after so many tokens, rebuild, and return the answer loss on the test split."""
    base, finetuned = models / "base", models / TASK
    options: dict[str, Any] = OPTIONS | ({} if tokens else {"solver": "nearest"})
    text = _text(finetuned, tokens, seed) if tokens else None
    whole = patch("impart_core.calibrate.hessian.shrinkage", return_value=0.0) if trusted else nullcontext()
    with tempfile.TemporaryDirectory() as folder:
        with whole:
            config = config_of(cr, method=method, seed=seed, options=options)
            delta = compress(Store(Path(folder) / "store"), base, finetuned, config, tokens=text)
        reconstruct(delta, open_checkpoint(base), Path(folder) / "model")
        return _loss(Path(folder) / "model")


def _loss(folder: Path) -> float:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return answer_loss(model, AutoTokenizer.from_pretrained(folder), TASK, "test")


def _text(finetuned: Path, tokens: int, seed: int) -> torch.Tensor:
    """Return about so many tokens, (sequences, length), of a text that no other seed has."""
    most = max(TOKENS) // _LENGTH
    text = CalibrationText(source=f"tinyzoo:{TASK}", sequences=most * (seed + 1), length=_LENGTH)
    read = read_tokens(text, open_checkpoint(finetuned))[most * seed :]
    return read[: max(1, tokens // _LENGTH), : min(tokens, _LENGTH)].contiguous()


def _table(found: dict[str, list[float]], method: str) -> str:
    lines = [f"| {method}, Hessians | " + " | ".join(f"{count:,} tokens" for count in TOKENS) + " |"]
    lines.append("|---|" + "--:|" * len(TOKENS))
    for trusted in (False, True):
        cells = [_mean_and_error(found[_key(method, count, trusted and count > 0)]) for count in TOKENS]
        lines.append(f"| {'trusted' if trusted else 'shrunk'} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _mean_and_error(values: list[float]) -> str:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {error:.3f}"


def _key(method: str, tokens: int, trusted: bool) -> str:
    return f"{method} {tokens} {'trusted' if trusted else 'shrunk'}"


if __name__ == "__main__":
    main()
