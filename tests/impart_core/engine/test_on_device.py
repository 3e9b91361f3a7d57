"""Whole compressions on a device give the CPU's files: calibration, Hessians, decompositions, codes."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from impart_core.apply.load import load_model
from impart_core.artifacts.delta import Delta
from impart_core.checkpoint.index import open_checkpoint
from impart_core.engine import chain, stages
from impart_core.store.store import Store
from tests.architectures import make_model, tune_
from tests.impart_core.pipeline import compress, config_of, small_options
from tests.pretend_device import PRETEND, counting
from tests.support import data_files

TOKENS = torch.randint(1, 40, (3, 16), generator=torch.Generator().manual_seed(3))
_SIDES = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
MODELS = {  # dense; stored as (in, out); with experts in one parameter
    "LlamaForCausalLM": {**_SIDES, **_HEADS},
    "GPT2LMHeadModel": {"vocab_size": 40, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "MixtralForCausalLM": {**_SIDES, **_HEADS, "num_local_experts": 2},
}
CASES = [
    ("LlamaForCausalLM", "impart", {}),
    ("LlamaForCausalLM", "impart-qt", {"solver": "support"}),
    ("LlamaForCausalLM", "impart-qt", {"solver": "masked"}),
    ("GPT2LMHeadModel", "delta-come", {"solver": "support"}),
    ("MixtralForCausalLM", "dare-qt", {"solver": "masked"}),
]


def save(root: Path, model_class: str) -> tuple[Path, Path]:
    """Save a small model and its fine-tune, and return their folders."""
    config = getattr(transformers, model_class).config_class(**MODELS[model_class], pad_token_id=0)
    model = make_model(config, model_class, torch.bfloat16)
    for side in ("base", "finetuned"):
        model.save_pretrained(root / side)
        tune_(model)
    return root / "base", root / "finetuned"


def compressed(folder: Path, pair: tuple[Path, Path], method: str, options: dict[str, Any]) -> Delta:
    calibrated = "solver" in options
    config = config_of(8, method=method, options={**small_options(method), **options})
    return compress(Store(folder), *pair, config, keep_factors=not calibrated, tokens=TOKENS if calibrated else None)


@pytest.mark.parametrize(("model_class", "method", "options"), CASES)
def test_a_device_gives_the_same_artifacts(
    model_class: str, method: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = save(tmp_path, model_class)
    here = compressed(tmp_path / "cpu", pair, method, options)
    for module in (stages, chain):
        monkeypatch.setattr(module, "resolve_device", lambda _: PRETEND)
    with counting() as counts:
        there = compressed(tmp_path / "device", pair, method, options)
    assert counts.launches.total() > 100
    assert there.manifest.id == here.manifest.id
    assert data_files(tmp_path / "device") == data_files(tmp_path / "cpu")


@torch.no_grad()
def test_a_loaded_model_runs_on_the_device(tmp_path: Path) -> None:
    pair = save(tmp_path, "LlamaForCausalLM")
    delta = compressed(tmp_path / "store", pair, "impart", {})
    here, there = (load_model(delta, open_checkpoint(pair[0]), device) for device in (torch.device("cpu"), PRETEND))
    assert {parameter.device for parameter in there.parameters()} == {PRETEND}
    assert torch.equal(there(input_ids=TOKENS.to(PRETEND)).logits.cpu(), here(input_ids=TOKENS).logits)
