"""Models that the installed libraries cannot load or run are refused in a sentence that names the cause."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from impart_core.base.errors import EvaluationError, StoreError
from impart_core.base.foreign import explained_failures
from impart_core.evaluation.harness import Evaluator
from impart_core.tinyzoo import path

pytestmark = pytest.mark.slow


def edit(file: Path, **values: Any) -> None:
    found = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**found, **values}))


def newer_tokenizer(folder: Path) -> None:
    edit(folder / "tokenizer.json", model={"type": "Future", "vocab": {}})


def bitsandbytes(folder: Path) -> None:
    edit(folder / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})


def compressed_tensors(folder: Path) -> None:
    edit(folder / "config.json", quantization_config={"quant_method": "compressed-tensors", "format": "dense"})


def flash_attention(folder: Path) -> None:
    edit(folder / "config.json", attn_implementation="flash_attention_2", _attn_implementation="flash_attention_2")


def impossible_generation(folder: Path) -> None:
    edit(folder / "generation_config.json", do_sample=False, num_return_sequences=4)


def small_embedding(folder: Path) -> None:
    (weights,) = folder.glob("*.safetensors")
    tensors = load_file(weights)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in tensors:
            tensors[name] = tensors[name][:20].clone()
    save_file(tensors, weights, metadata={"format": "pt"})
    edit(folder / "config.json", vocab_size=20)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (newer_tokenizer, "cannot be loaded for evaluation: "),
        (bitsandbytes, "bitsandbytes"),
        (compressed_tensors, "compressed"),
        (small_embedding, "Its tokenizer gives ids up to [0-9]+, and its embedding has 20 rows only."),
        (impossible_generation, "num_return_sequences"),
        (flash_attention, "FlashAttention"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_model_that_cannot_be_run_is_a_sentence(spoil: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(path("math"), folder)
    spoil(folder)
    with pytest.raises(EvaluationError, match=said) as caught:
        Evaluator(folder).measure(["tinyzoo_math"], limit=1)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


class Panic(BaseException):
    """As extensions in Rust raise it."""


@pytest.mark.parametrize("error", [Panic("unwrap"), KeyError("x"), ImportError("needs y\n  and z"), RuntimeError()])
def test_whatever_is_raised_becomes_one_line(error: BaseException) -> None:
    with pytest.raises(EvaluationError, match=f"The model failed: {type(error).__name__}") as caught:  # noqa: SIM117
        with explained_failures("The model failed", lambda: "Do this.", EvaluationError):
            raise error
    assert str(caught.value).endswith("Do this.")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [StoreError("a sentence"), KeyboardInterrupt(), SystemExit(3)])
def test_a_sentence_and_an_interruption_stay_what_they_are(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, explained_failures("The model failed", str, EvaluationError):
        raise error
    assert caught.value is error
