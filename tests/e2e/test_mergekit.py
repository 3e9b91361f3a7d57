"""mergekit's files, as they are, on small models of four architectures: the merged tensors are mergekit's own."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml

import impart_core as impart
from impart_core.checkpoint.index import open_checkpoint
from impart_core.checkpoint.reader import read_tensor
from tests.mergekit_env import mergekit_or_skip

pytestmark = pytest.mark.slow

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}
ARCHITECTURES = {
    "llama": transformers.LlamaConfig(**SIZES),
    "qwen2": transformers.Qwen2Config(**SIZES, tie_word_embeddings=True),
    "gemma2": transformers.Gemma2Config(**SIZES, head_dim=8),
    "mistral": transformers.MistralConfig(**SIZES),
}
# Those of mergekit's folder `examples`, and of its page on methods, with smaller models.
FILES = {
    "linear": """
models:
  - {model: A, parameters: {weight: 1.0}}
  - {model: B, parameters: {weight: 0.3}}
  - {model: C, parameters: {weight: 0.5}}
merge_method: linear
dtype: float32
""",
    "gradient-slerp": """
slices:
  - sources:
      - {model: A, layer_range: [0, 4]}
      - {model: B, layer_range: [0, 4]}
merge_method: slerp
base_model: A
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5 # fallback for rest of tensors
dtype: float32
""",
    "ties": """
models:
  - model: A
    parameters: {density: [1, 0.7, 0.1], weight: 1.0}
  - model: B
    parameters: {density: 0.5, weight: [0, 0.3, 0.7, 1]}
  - model: C
    parameters:
      density: 0.33
      weight:
        - {filter: mlp, value: 0.5}
        - value: 0
merge_method: ties
base_model: BASE
parameters: {normalize: true, int8_mask: true}
dtype: float32
""",
    "bio-merge": """
models:
  - {model: A, parameters: {density: 0.5, weight: 0.5}}
  - {model: B, parameters: {density: 0.5, weight: 0.5}}
merge_method: ties
base_model: BASE
parameters: {normalize: false, int8_mask: true}
dtype: float32
""",
    "task-arithmetic": """
models:
  - {model: BASE}
  - {model: A, parameters: {weight: [0.2, 0.9]}}
  - {model: B, parameters: {weight: 0.4}}
merge_method: task_arithmetic
base_model: BASE
parameters: {lambda: 0.8}
dtype: float32
""",
    "breadcrumbs": """
models:
  - {model: A, parameters: {density: 0.8, gamma: 0.05, weight: 0.6}}
  - {model: B, parameters: {density: 0.7, gamma: 0.02, weight: 0.4}}
merge_method: breadcrumbs
base_model: BASE
dtype: float32
""",
    "sce": """
models: [{model: A}, {model: B}, {model: C}]
merge_method: sce
base_model: BASE
parameters: {select_topk: 0.4}
dtype: float32
""",
    "karcher": """
models: [{model: A}, {model: B}, {model: C}]
merge_method: karcher
parameters: {max_iter: 20, tol: 1.0e-6}
dtype: float32
""",
    "passthrough": """
slices:
  - sources: [{model: A, layer_range: [1, 3]}]
  - sources: [{model: B, layer_range: [2, 4]}]
merge_method: passthrough
dtype: float32
""",
}
_MERGEKIT = """
import json, sys, yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
for path, out in json.loads(sys.argv[1]):
    config = MergeConfiguration.model_validate(yaml.safe_load(open(path)))
    run_merge(config, out, MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False))
"""


@pytest.fixture(scope="module")
def merges(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[Path, Path]]:
    """Return the file and mergekit's folder of each example and architecture; one process of mergekit makes them."""
    python, root = mergekit_or_skip(), tmp_path_factory.mktemp("mergekit")
    made = {}
    for kind, config in ARCHITECTURES.items():
        places = _save_models(root / kind, config)
        for name, text in FILES.items():
            path = root / kind / f"{name}.yaml"
            path.write_text(yaml.safe_dump(_placed(yaml.safe_load(text), places)))
            made[kind, name] = path, root / kind / name
    jobs = json.dumps([[str(path), str(out)] for path, out in made.values()])
    done = subprocess.run([str(python), "-c", _MERGEKIT, jobs], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return made


def _save_models(root: Path, config: Any) -> dict[str, str]:
    """Save a base and three fine-tunes of it; return their places by what the files call them."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    base = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    places = {}
    for name in ("BASE", "A", "B", "C"):
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                noise = torch.randn_like(parameter) * 0.01 if name != "BASE" else 0.0
                parameter.copy_(base[key] + noise)
        model.save_pretrained(root / f"model-{name}")
        places[name] = str(root / f"model-{name}")
    return places


def _placed(value: Any, places: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _placed(part, places) for key, part in value.items()}
    if isinstance(value, list):
        return [_placed(part, places) for part in value]
    return places.get(value, value) if isinstance(value, str) else value


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_file_of_mergekit_gives_its_tensors(
    kind: str, name: str, merges: dict[tuple[str, str], tuple[Path, Path]], tmp_path: Path
) -> None:
    path, theirs = merges[kind, name]
    impart.merge(path, out=tmp_path / "out", store=tmp_path / "store")
    ours, other = open_checkpoint(tmp_path / "out"), open_checkpoint(theirs)
    assert ours.tensors.keys() == other.tensors.keys()
    for tensor, info in ours.tensors.items():
        torch.testing.assert_close(read_tensor(info), read_tensor(other.tensors[tensor]), rtol=1e-5, atol=1e-6)
    for key in ("num_hidden_layers", "vocab_size", "tie_word_embeddings"):
        assert ours.config.get(key) == other.config.get(key), key
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
