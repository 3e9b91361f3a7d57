"""The shipped folders: names, size, shapes, dtype, and that fine-tunes are real full fine-tunes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from impart_core.base.errors import OutputExistsError, UnknownNameError
from impart_core.tinyzoo import FINE_TUNES, MODELS, build, path


def _tensors(name: str) -> dict[str, torch.Tensor]:
    return load_file(path(name) / "model.safetensors")


def test_all_weights_together_are_at_most_16_megabytes() -> None:
    assert sum(file.stat().st_size for file in path().rglob("*") if file.is_file()) <= 16_000_000


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_a_bfloat16_llama_with_grouped_query_attention(name: str) -> None:
    config = json.loads((path(name) / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    assert config["tie_word_embeddings"] is False
    tensors = _tensors(name)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert sum(tensor.numel() for tensor in tensors.values()) >= 1_500_000
    for file in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (path(name) / file).is_file()


@pytest.mark.parametrize("name", FINE_TUNES)
def test_a_fine_tune_changes_every_matrix_a_little(name: str) -> None:
    base, tuned = _tensors("base"), _tensors(name)
    assert base.keys() == tuned.keys()
    for key, before in base.items():
        assert tuned[key].shape == before.shape
        if "proj" in key:
            change = (tuned[key].float() - before.float()).norm() / before.float().norm()
            assert 0.005 < change < 0.8, key


def test_an_unknown_model_names_the_valid_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean 'math'.*base, chat, code, math"):
        path("mth")


def test_build_copies_all_models(tmp_path: Path) -> None:
    out = build(tmp_path / "zoo")
    assert sorted(folder.name for folder in out.iterdir()) == sorted(MODELS)
    for name in MODELS:
        for file in path(name).iterdir():
            assert (out / name / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_build_overwrites_nothing(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "zoo"
    if kind == "folder":
        out.mkdir()
        (out / "mine").write_text("keep")
    else:
        out.write_text("keep")
    with pytest.raises(OutputExistsError, match="empty folder"):
        build(out)
    assert (out / "mine" if kind == "folder" else out).read_text() == "keep"


def test_importing_the_zoo_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'lm_eval', 'datasets'}"
    code = f"import sys, impart_core.tinyzoo, impart_core.evaluation; print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
