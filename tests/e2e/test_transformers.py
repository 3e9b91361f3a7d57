"""A model that transformers itself saved, compressed and rebuilt, is a model that transformers loads and runs."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tests.support import Environment, run_json

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small Llama with tied embeddings and its fine-tune, saved by transformers, the fine-tune in shards."""
    root = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(root / "base")
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "_proj." in name:  # of rank 2, which is kept whole at CR 4
                m, n = tensor.shape
                tensor += 0.02 * torch.randn(m, 2) @ torch.randn(2, n)
            elif "norm" in name:
                tensor += 0.01
    model.save_pretrained(root / "finetuned", max_shard_size="100KB")
    assert (root / "finetuned" / "model.safetensors.index.json").exists()
    return root / "base", root / "finetuned"


def load(folder: Path) -> PreTrainedModel:
    """Load a model folder, which must hold every weight and no other."""
    model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert not found["mismatched_keys"]
    return model.eval()


@torch.no_grad()
def test_a_rebuilt_model_runs_and_answers_like_the_fine_tune(
    saved: tuple[Path, Path], tmp_path: Path, environment: Environment
) -> None:
    base, finetuned = saved
    store, out = ["--store", str(tmp_path / "store")], tmp_path / "out"
    made = run_json("compress", str(base), str(finetuned), "--cr", "4", *store, environment=environment)
    run_json("reconstruct", made["artifact"], "--base", str(base), "--out", str(out), *store)
    rebuilt = load(out)
    assert rebuilt.dtype == torch.float32
    assert (out / "generation_config.json").read_bytes() == (finetuned / "generation_config.json").read_bytes()
    tokens = torch.randint(0, 96, (8, 32), generator=torch.Generator().manual_seed(1))
    ours, theirs, plain = (model(tokens).logits for model in (rebuilt, load(finetuned), load(base)))
    assert bool(torch.isfinite(ours).all())
    # Kept values are rounded to float16, by at most one part in 2048; the logits add up a few hundred of them.
    assert torch.dist(ours, theirs) < 0.005 * torch.dist(plain, theirs)
