"""The shipped folders: names, size, shapes, dtype, and that fine-tunes are real full fine-tunes."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from impart_core.base.errors import OutputExistsError, UnknownNameError
from impart_core.tinyzoo import ZOOS, build, fine_tunes, models, path
from impart_core.tinyzoo.recipe import CARD, GAP_AT_LEAST, RECIPES, Recipe

EVERY = [(zoo, name) for zoo in ZOOS for name in models(zoo)]


def _tensors(name: str, zoo: str) -> dict[str, torch.Tensor]:
    return load_file(path(name, zoo) / "model.safetensors")


@pytest.mark.parametrize(("zoo", "megabytes"), [("first", 16), ("second", 9), ("flat", 8)])
def test_all_weights_of_a_zoo_together_are_small(zoo: str, megabytes: int) -> None:
    assert sum(file.stat().st_size for file in path(zoo=zoo).rglob("*") if file.is_file()) <= megabytes * 1e6


@pytest.mark.parametrize(("zoo", "name"), EVERY)
def test_a_model_is_in_bfloat16_and_has_grouped_query_attention(zoo: str, name: str) -> None:
    folder = path(name, zoo)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["SeedOssForCausalLM" if zoo == "second" else "LlamaForCausalLM"]
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    tensors = _tensors(name, zoo)
    assert config["tie_word_embeddings"] is ("lm_head.weight" not in tensors) is (zoo == "second")
    assert any(key.endswith("bias") for key in tensors) is (zoo == "second")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert sum(tensor.numel() for tensor in tensors.values()) >= 1_000_000
    for file in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (folder / file).is_file()


@pytest.mark.parametrize("zoo", ZOOS)
def test_the_card_says_that_the_fine_tunes_learned_their_tasks(zoo: str) -> None:
    card = json.loads((path(zoo=zoo) / CARD).read_text())
    recipe = {**asdict(Recipe()), **card["recipe"]}  # that of the first was written before there was a second
    assert recipe == asdict(RECIPES[zoo])
    measured = card["test_split"]
    for name in fine_tunes(zoo):
        assert measured["base"][name]["answer_loss"] - measured[name][name]["answer_loss"] > GAP_AT_LEAST


@pytest.mark.parametrize(("zoo", "name"), [(zoo, name) for zoo in ZOOS for name in fine_tunes(zoo)])
def test_a_fine_tune_changes_every_matrix_a_little(zoo: str, name: str) -> None:
    base, tuned = _tensors("base", zoo), _tensors(name, zoo)
    assert base.keys() == tuned.keys()
    for key, before in base.items():
        assert tuned[key].shape == before.shape
        if key.endswith("proj.weight"):
            change = (tuned[key].float() - before.float()).norm() / before.float().norm()
            assert 0.005 < change < 0.8, key


def test_the_flat_zoo_has_the_base_of_the_first_and_flatter_deltas() -> None:
    assert path("base", "flat") == path("base", "first")
    for name in fine_tunes("flat"):
        flat, steep = (_energy_in_the_first_eight(name, zoo) for zoo in ("flat", "first"))
        assert flat < steep / 1.5


def _energy_in_the_first_eight(name: str, zoo: str) -> float:
    """Return the mean share of ‖ΔW‖² over projections."""
    base, tuned = _tensors("base", zoo), _tensors(name, zoo)
    deltas = [tuned[key].float() - base[key].float() for key in base if key.endswith("proj.weight")]
    energies = [torch.linalg.svdvals(delta).square() for delta in deltas]
    return sum(float(one[:8].sum() / one.sum()) for one in energies) / len(energies)


def test_an_unknown_model_names_the_valid_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean 'math'.*base, chat, code, math"):
        path("mth")
    with pytest.raises(UnknownNameError, match=r"tiny zoo 'third'.*first, flat, second"):
        path("math", "third")


@pytest.mark.parametrize("zoo", ZOOS)
def test_build_copies_all_models(tmp_path: Path, zoo: str) -> None:
    out = build(tmp_path / "zoo", zoo)
    assert sorted(folder.name for folder in out.iterdir()) == sorted(models(zoo))
    for name in models(zoo):
        for file in path(name, zoo).iterdir():
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
