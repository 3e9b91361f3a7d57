"""mergekit runs in its environment, and the project's environment has none of it."""

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from impart_core.checkpoint.index import open_checkpoint
from impart_core.checkpoint.reader import read_tensor
from tests import mergekit_env
from tests.mergekit_env import mergekit_or_skip, mergekit_python
from tests.own_environment import NotInstalledError


@pytest.mark.slow
def test_mergekit_yaml_merges_a_tiny_llama(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    python = mergekit_or_skip()
    config = LlamaConfig(
        **{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 64},
        **{"num_attention_heads": 2, "num_key_value_heads": 2},
    )
    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(tmp_path / name)
    models = [{"model": str(tmp_path / name), "parameters": {"weight": 1}} for name in ("a", "b")]
    (tmp_path / "merge.yaml").write_text(json.dumps({"merge_method": "linear", "models": models, "dtype": "float32"}))
    done = subprocess.run(
        [python.with_name("mergekit-yaml"), tmp_path / "merge.yaml", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "b"))
    merged = {name: read_tensor(info) for name, info in open_checkpoint(tmp_path / "out").tensors.items()}
    assert set(merged) == set(a)
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, (a[name] + b[name]) / 2)
    assert importlib.util.find_spec("mergekit") is None


@pytest.mark.slow
def test_where_it_cannot_be_installed_the_reason_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(mergekit_env, "VERSION", "0.0.0.never")
    with pytest.raises(NotInstalledError, match=r"^mergekit 0.0.0.never cannot be installed here: ERROR: .*"):
        mergekit_python()
