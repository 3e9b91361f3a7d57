"""PEFT adapters as fine-tunes: each is held against what the `peft` library itself makes of it."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file

from impart_core.base.errors import CheckpointError
from impart_core.checkpoint.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from impart_core.checkpoint.digest import checkpoint_id, tensor_digests
from impart_core.checkpoint.index import Checkpoint, open_checkpoint
from impart_core.checkpoint.reader import read_tensor, tensor_digest
from impart_core.checkpoint.writer import folder_of
from tests.architectures import ARCHITECTURES
from tests.impart_core.checkpoint.remotes import upload

ATTENTION = ["q_proj", "v_proj"]
LLAMA = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}


def save_base(folder: Path, dtype: torch.dtype = torch.float32, **settings: Any) -> Path:
    """Save a small Llama with random weights."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**LLAMA, **settings})
    transformers.LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    return folder


def save_gpt2(folder: Path) -> Path:
    """Save a small GPT-2, whose linear layers are stored as (in, out)."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=32, vocab_size=48)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def train(base: Path, out: Path, config: LoraConfig, adapter: str = "default") -> PeftModel:
    """Put an adapter with random values on a base, save it, and return the model with it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    tuned = peft.get_peft_model(model, config, adapter_name=adapter)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sorted(tuned.named_parameters()):
            if parameter.requires_grad or "trainable_tokens_delta" in name:
                noise = torch.randn(parameter.shape, generator=generator) * 0.1
                parameter.copy_(parameter.float().abs() + noise.abs() if "magnitude" in name else parameter + noise)
    tuned.save_pretrained(out)
    return tuned.eval()


def tensors_of(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {name: read_tensor(info) for name, info in checkpoint.tensors.items()}


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(16).reshape(2, 8) * 3 % 48).logits


def merged_logits(checkpoint: Checkpoint) -> torch.Tensor:
    """Return what transformers computes with a merged checkpoint."""
    with folder_of(checkpoint) as folder:
        assert not (folder / ADAPTER_CONFIG).exists()
        return logits_of(transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval())


CONFIGS: dict[str, Callable[[], LoraConfig]] = {
    "lora": lambda: LoraConfig(r=4, lora_alpha=12, target_modules=ATTENTION),
    "rslora": lambda: LoraConfig(r=4, lora_alpha=12, use_rslora=True, target_modules="all-linear"),
    "dora": lambda: LoraConfig(r=4, lora_alpha=12, use_dora=True, target_modules=["q_proj", "k_proj", "down_proj"]),
    "dora rslora": lambda: LoraConfig(r=3, lora_alpha=7, use_dora=True, use_rslora=True, target_modules=ATTENTION),
    "patterns": lambda: LoraConfig(
        r=4,
        lora_alpha=12,
        target_modules=["q_proj", "v_proj", "up_proj"],
        rank_pattern={"q_proj": 2, r"layers\.1\..*up_proj": 6, "^model.layers.0.self_attn.v_proj": 3},
        alpha_pattern={"v_proj": 5, r".*\.0\.mlp\.up_proj": 20, "up_proj": 1},
    ),
    "modules saved": lambda: LoraConfig(r=4, target_modules=ATTENTION, modules_to_save=["lm_head", "embed_tokens"]),
    "norms saved": lambda: LoraConfig(r=4, target_modules=ATTENTION, modules_to_save=["input_layernorm", "norm"]),
    "head": lambda: LoraConfig(r=4, target_modules=["lm_head"]),
    "embedding": lambda: LoraConfig(r=4, lora_alpha=12, target_modules=["embed_tokens", "q_proj"]),
    "embedding dora": lambda: LoraConfig(r=4, use_dora=True, target_modules=["embed_tokens"]),
    "tokens": lambda: LoraConfig(r=4, target_modules=ATTENTION, trainable_token_indices=[5, 1, 40]),
    "tokens by name": lambda: LoraConfig(
        r=4, target_modules=ATTENTION, trainable_token_indices={"embed_tokens": [2, 3]}
    ),
    "some layers": lambda: LoraConfig(r=4, target_modules=ATTENTION, layers_to_transform=[1]),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_merge_is_that_of_peft(kind: str, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    tuned = train(base, tmp_path / "adapter", CONFIGS[kind]())
    expected = logits_of(tuned)
    merged = tuned.merge_and_unload().state_dict()
    checkpoint = open_checkpoint(tmp_path / "adapter", open_checkpoint(base))
    found = tensors_of(checkpoint)
    assert {name: value.dtype for name, value in found.items()} == {name: value.dtype for name, value in merged.items()}
    changed = [name for name, value in tensors_of(open_checkpoint(base)).items() if not torch.equal(found[name], value)]
    assert changed
    for name, value in merged.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)  # float32 rounding
    torch.testing.assert_close(merged_logits(checkpoint), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("biases", [{"bias": "all"}, {"bias": "lora_only"}, {"lora_bias": True}])
def test_biases_are_those_of_peft(biases: dict[str, Any], tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", attention_bias=True)
    tuned = train(base, tmp_path / "adapter", LoraConfig(r=4, lora_alpha=12, target_modules=ATTENTION, **biases))
    merged = tuned.merge_and_unload().state_dict()
    found = tensors_of(open_checkpoint(tmp_path / "adapter", open_checkpoint(base)))
    for name, value in merged.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("dora", [False, True])
def test_layers_that_are_stored_the_other_way_round(dora: bool, tmp_path: Path) -> None:
    base = save_gpt2(tmp_path / "base")
    config = LoraConfig(r=4, use_dora=dora, fan_in_fan_out=True, target_modules=["c_attn", "c_proj", "c_fc"])
    tuned = train(base, tmp_path / "adapter", config)
    merged = tuned.merge_and_unload().state_dict()
    found = tensors_of(open_checkpoint(tmp_path / "adapter", open_checkpoint(base)))
    for name in found:
        torch.testing.assert_close(found[name], merged[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": ATTENTION},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["lm_head"]},
        {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens"]},
        {"target_modules": ATTENTION, "modules_to_save": ["lm_head"]},
        {"target_modules": ATTENTION, "modules_to_save": ["lm_head", "embed_tokens"]},
        {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {"target_modules": ATTENTION, "trainable_token_indices": [7, 2]},
    ],
    ids=str,
)
def test_a_head_that_is_tied_computes_as_it_did_in_peft(changes: dict[str, Any], tmp_path: Path) -> None:
    """Merging in peft would change a tied head together with its embedding; what was trained did not."""
    base = save_base(tmp_path / "base", tie_word_embeddings=True)
    expected = logits_of(train(base, tmp_path / "adapter", LoraConfig(r=4, lora_alpha=12, **changes)))
    checkpoint = open_checkpoint(tmp_path / "adapter", open_checkpoint(base))
    assert ("lm_head.weight" in checkpoint.tensors) is (checkpoint.config["tie_word_embeddings"] is False)
    torch.testing.assert_close(merged_logits(checkpoint), expected, rtol=1e-4, atol=1e-5)


def test_a_grown_vocabulary_comes_with_a_configuration_that_fits(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(52)
    tuned = peft.get_peft_model(model, LoraConfig(r=4, target_modules=ATTENTION))
    tuned.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    expected = logits_of(tuned.eval())
    checkpoint = open_checkpoint(tmp_path / "adapter", open_checkpoint(base))
    assert checkpoint.config["vocab_size"] == 52
    torch.testing.assert_close(merged_logits(checkpoint), expected, rtol=1e-4, atol=1e-5)


def test_experts_that_are_stored_as_one_tensor(tmp_path: Path) -> None:
    """Both parameters of a module: which of them is which, shapes say."""
    torch.manual_seed(0)
    settings = {**LLAMA, "num_local_experts": 3, "num_experts_per_tok": 2, "intermediate_size": 40, "head_dim": 8}
    kinds = {"layer_types": ["full_attention"] * 2, "pad_token_id": 0, "eos_token_id": 1}
    model = transformers.GptOssForCausalLM(transformers.GptOssConfig(**settings, **kinds))
    model.save_pretrained(tmp_path / "base")
    names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = LoraConfig(
        r=2, lora_alpha=6, target_modules=["q_proj"], target_parameters=names, alpha_pattern={"gate_up_proj": 3}
    )
    merged = train(tmp_path / "base", tmp_path / "adapter", config).merge_and_unload().state_dict()
    found = open_checkpoint(tmp_path / "adapter", open_checkpoint(tmp_path / "base"))
    for name, value in tensors_of(found).items():
        torch.testing.assert_close(value, merged[name], rtol=1e-5, atol=1e-6, msg=name)
    stack = found.tensors["model.layers.0.mlp.experts.gate_up_proj"]
    whole = read_tensor(stack)
    assert all(torch.equal(read_tensor(stack.part(expert)), whole[expert]) for expert in range(3))
    assert len({tensor_digest(stack), tensor_digest(stack)}) == 1


def test_an_adapter_and_the_merged_model_are_the_same_checkpoint(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    train(base, tmp_path / "adapter", CONFIGS["lora"]())
    checkpoint = open_checkpoint(tmp_path / "adapter", open_checkpoint(base))
    with folder_of(checkpoint) as folder:
        assert checkpoint_id(tensor_digests(open_checkpoint(folder))) == checkpoint_id(tensor_digests(checkpoint))


def test_it_is_computed_in_float32_and_cast_once(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", torch.bfloat16)
    train(base, tmp_path / "adapter", CONFIGS["lora"]())
    found = open_checkpoint(tmp_path / "adapter", open_checkpoint(base))
    name = "model.layers.0.self_attn.q_proj.weight"
    raw = load_file(tmp_path / "adapter" / ADAPTER_WEIGHTS)
    a, b = (raw[f"base_model.model.{name.replace('weight', '')}lora_{side}.weight"].double() for side in "AB")
    exact = load_file(base / "model.safetensors")[name].double() + 3 * b @ a
    difference = (read_tensor(found.tensors[name]).double() - exact.bfloat16().double()).abs()
    assert int((difference > 0).sum()) <= 2  # where float32 falls to the other side of a tie


def test_digests_follow_the_settings_of_a_merge_and_are_remembered(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    train(base, tmp_path / "adapter", CONFIGS["lora"]())
    opened = open_checkpoint(base)
    before = tensor_digests(open_checkpoint(tmp_path / "adapter", opened))
    own = tensor_digests(opened)  # the base's files are remembered by parts
    assert own == tensor_digests(open_checkpoint(base), refresh=True)
    assert {name for name in own if own[name] != before[name]} == {
        f"model.layers.{layer}.self_attn.{module}.weight" for layer in (0, 1) for module in ATTENTION
    }
    change(tmp_path / "adapter", lora_alpha=13)
    after = open_checkpoint(tmp_path / "adapter", opened)
    assert tensor_digests(after) == tensor_digests(after, refresh=True) != before
    assert tensor_digests(pickle.loads(pickle.dumps(after)), refresh=True) == tensor_digests(after)


def change(folder: Path, **settings: Any) -> None:
    """Change the configuration of an adapter."""
    file = folder / ADAPTER_CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("plain")
    base = save_base(root / "base")
    train(base, root / "adapter", CONFIGS["lora"]())
    return base, root / "adapter"


def test_it_lies_in_the_folder_of_its_base(plain: tuple[Path, Path], tmp_path: Path) -> None:
    """Transformers itself loads both."""
    shutil.copytree(plain[0], tmp_path / "both")
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        shutil.copy(plain[1] / name, tmp_path / "both")
    found = open_checkpoint(tmp_path / "both")
    assert tensor_digests(found) == tensor_digests(open_checkpoint(plain[1], open_checkpoint(plain[0])))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "both").eval()
    torch.testing.assert_close(merged_logits(found), logits_of(loaded), rtol=1e-4, atol=1e-5)
    assert "as transformers loads them" in found.notes[0]
    assert not {ADAPTER_CONFIG, ADAPTER_WEIGHTS} & {*found.left}


def test_it_lies_behind_a_url(plain: tuple[Path, Path], tmp_path: Path) -> None:
    there = open_checkpoint(upload(plain[1], "adapter"), open_checkpoint(upload(plain[0], "base")))
    assert tensor_digests(there) == tensor_digests(open_checkpoint(plain[1], open_checkpoint(plain[0])))
    assert there.location == "counting://adapter"


def test_names_with_another_prefix_are_found(plain: tuple[Path, Path], tmp_path: Path) -> None:
    """An adapter of the model without its head, of the model in wrappers, and with the adapter's name in its keys."""
    expected = tensor_digests(open_checkpoint(plain[1], open_checkpoint(plain[0])))
    for number, rename in enumerate(
        (
            lambda key: key.replace("base_model.model.model.", "base_model.model."),
            lambda key: f"base_model.model.{key}",
            lambda key: key.replace("base_model.model.", "base_model.model._orig_mod."),
            lambda key: key.replace("lora_A.", "lora_A.default."),
        )
    ):
        folder = tmp_path / str(number)
        shutil.copytree(plain[1], folder)
        tensors = load_file(plain[1] / ADAPTER_WEIGHTS)
        save_file({rename(key): value for key, value in tensors.items()}, folder / ADAPTER_WEIGHTS)
        assert tensor_digests(open_checkpoint(folder, open_checkpoint(plain[0]))) == expected


def test_another_base_than_it_names_is_told(plain: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(plain[1], tmp_path / "adapter")
    base = open_checkpoint(plain[0])
    assert len(open_checkpoint(tmp_path / "adapter", base).notes) == 1
    change(tmp_path / "adapter", base_model_name_or_path="org/another")
    assert "calls its base 'org/another'" in open_checkpoint(tmp_path / "adapter", base).notes[1]
    for name in ("org/base", "/cache/models--org--Base/snapshots/abc"):
        change(tmp_path / "adapter", base_model_name_or_path=name)
        assert len(open_checkpoint(tmp_path / "adapter", base).notes) == 1


def test_its_tokenizer_and_the_rest_of_the_base_go_with_it(plain: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = (Path(shutil.copytree(side, tmp_path / side.name)) for side in plain)
    (base / "tokenizer.json").write_text("of the base")
    (adapter / "tokenizer.json").write_text("of the adapter")
    (adapter / "config.json").write_text("{}")  # what some trainers leave there
    found = open_checkpoint(adapter, open_checkpoint(base))
    assert set(found.carried) == {"config.json", "generation_config.json", "tokenizer.json"}
    assert bytes(found.carried["tokenizer.json"].read(0, 14)) == b"of the adapter"
    assert found.config["model_type"] == "llama"
    assert found.nbytes == open_checkpoint(base).nbytes - 8 - header_bytes(base) + len("of the adapter") - 11


def header_bytes(folder: Path) -> int:
    return int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"peft_type": "IA3"}, "type 'IA3'"),
        ({"peft_type": "PROMPT_TUNING"}, "type 'PROMPT_TUNING'"),
        ({"peft_type": None}, "type None"),
        ({"alora_invocation_tokens": [1]}, "'alora_invocation_tokens'"),
        ({"layer_replication": [[0, 1]]}, "'layer_replication'"),
        ({"megatron_config": {"a": 1}}, "'megatron_config'"),
        ({"use_something_new": True}, "'use_something_new'"),
        ({"init_lora_weights": "pissa_niter_4"}, "initialised by 'pissa_niter_4'"),
        ({"init_lora_weights": "mica"}, "initialised by 'mica'"),
        ({"r": 0}, "ranks"),
        ({"r": "4"}, "ranks"),
        ({"lora_alpha": float("inf")}, "alphas"),
        ({"rank_pattern": [1]}, "rank_pattern"),
        ({"alpha_pattern": {"(": 3}}, "alpha_pattern"),
        ({"rank_pattern": {"(q+)+_proj": 3}}, "repeats a repetition"),
        ({"trainable_token_indices": "all"}, "trainable_token_indices"),
        ({"r": 5}, "of rank 5"),
        ({"use_dora": True}, "use_dora"),
    ],
    ids=str,
)
def test_what_cannot_be_merged_is_refused_by_name(
    settings: dict[str, Any], why: str, plain: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(plain[1], tmp_path / "adapter")
    change(tmp_path / "adapter", **settings)
    with pytest.raises(CheckpointError, match=why):
        open_checkpoint(tmp_path / "adapter", open_checkpoint(plain[0]))


def test_settings_that_are_off_or_change_no_weight_are_taken(plain: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(plain[1], tmp_path / "adapter")
    change(tmp_path / "adapter", use_something_new=False, another=None, third={}, lora_dropout=0.5, task_type="X")
    open_checkpoint(tmp_path / "adapter", open_checkpoint(plain[0]))


@pytest.mark.parametrize(
    ("key", "tensor", "why"),
    [
        ("base_model.model.model.layers.9.mlp.up_proj.lora_A.weight", torch.ones(4, 32), "layers.9.mlp.up_proj"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", torch.ones(4, 31), r"A \[4, 31\]"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", torch.ones(0), "ZeRO-3"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", torch.ones(4, 32, 1, 1), "convolutions"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_diag", torch.ones(4), "lora_diag"),
        ("base_model.model.prompt_encoder.weight", torch.ones(4), "prompt_encoder"),
    ],
)
def test_a_tensor_that_fits_nowhere_is_refused_by_name(
    key: str, tensor: torch.Tensor, why: str, plain: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(plain[1], tmp_path / "adapter")
    save_file({**load_file(plain[1] / ADAPTER_WEIGHTS), key: tensor}, tmp_path / "adapter" / ADAPTER_WEIGHTS)
    with pytest.raises(CheckpointError, match=why):
        open_checkpoint(tmp_path / "adapter", open_checkpoint(plain[0]))


def test_an_adapter_of_another_model_is_refused(plain: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    architecture = ARCHITECTURES["qwen2"]
    getattr(transformers, architecture.model)(architecture.config()).save_pretrained(other)
    with pytest.raises(CheckpointError, match=r"cannot be merged at 'model\.layers\.\d\.self_attn"):
        open_checkpoint(plain[1], open_checkpoint(other))


def test_of_several_adapters_one_is_to_be_given(tmp_path: Path) -> None:
    """As peft saves those that have names."""
    base = save_base(tmp_path / "base")
    for name in ("first", "second"):
        train(base, tmp_path / "adapters", CONFIGS["lora"](), adapter=name)
    with pytest.raises(CheckpointError, match="It holds adapters in first, second: give one of them"):
        open_checkpoint(tmp_path / "adapters", open_checkpoint(base))
    open_checkpoint(tmp_path / "adapters" / "first", open_checkpoint(base))


def test_without_a_base_or_its_weights_it_is_refused(plain: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is a PEFT adapter, not a whole model"):
        open_checkpoint(plain[1])
    shutil.copytree(plain[1], tmp_path / "adapter")
    (tmp_path / "adapter" / ADAPTER_WEIGHTS).rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin is a pickle"):
        open_checkpoint(tmp_path / "adapter", open_checkpoint(plain[0]))
