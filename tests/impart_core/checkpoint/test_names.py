"""Names that differ: wrappers', those of another version of transformers, and those of a part of the base."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from impart_core import tinyzoo
from impart_core.apply.dense import reconstruct
from impart_core.base.errors import CheckpointError, MismatchError
from impart_core.checkpoint.index import open_checkpoint
from impart_core.checkpoint.pairing import pair_tensors
from impart_core.checkpoint.plain import plain
from impart_core.checkpoint.preflight import preflight, require_complete
from impart_core.checkpoint.writer import folder_of
from impart_core.engine.preflight import open_side
from impart_core.store.store import Store
from tests.architectures import ARCHITECTURES, load_whole, make_model, tune_
from tests.impart_core.pipeline import compress, config_of

Rename = Callable[[str], str]


def save_llama(root: Path) -> None:
    wanted = ARCHITECTURES["llama"]
    model = make_model(wanted.config(), wanted.model, wanted.dtype)
    for side in ("base", "finetuned"):
        model.save_pretrained(root / side)
        tune_(model)


def rename(folder: Path, renamed: Rename) -> None:
    """Rename the tensors of a folder's single file."""
    file = folder / "model.safetensors"
    save_file({renamed(name): tensor for name, tensor in load_file(file).items()}, file, {"format": "pt"})


def put(pattern: str, text: str) -> Rename:
    return lambda name: re.sub(pattern, text, name)


WRAPPERS = {
    "DDP": put("^", "module."),
    "torch.compile": put("^", "_orig_mod."),
    "DDP of torch.compile": put("^", "module._orig_mod."),
    "torch.compile of DDP": put("^", "_orig_mod.module."),
    "DeepSpeed": put("^", "_forward_module.module."),
    "PEFT": put("^", "base_model.model."),
    "layers compiled": put(r"(layers\.\d+)\.", r"\1._orig_mod."),
    "FSDP": put(r"^|(layers\.\d+)\.", lambda found: f"{found[0]}_fsdp_wrapped_module."),  # type: ignore[arg-type]
    "activations recomputed": put(r"(layers\.\d+)\.", r"\1._checkpoint_wrapped_module."),
}


@pytest.mark.parametrize("sides", [("base",), ("finetuned",), ("base", "finetuned")], ids=" and ".join)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_what_a_model_was_wrapped_in_is_left_out_of_the_names(
    wrapper: str, sides: tuple[str, ...], tmp_path: Path
) -> None:
    save_llama(tmp_path)
    expected = {side: open_checkpoint(tmp_path / side).tensors for side in ("base", "finetuned")}
    for side in sides:
        rename(tmp_path / side, WRAPPERS[wrapper])
        found = plain(open_checkpoint(tmp_path / side))
        assert found.tensors.keys() == expected[side].keys()
        assert "was saved with what its model was wrapped in" in found.notes[0]
    pairs = preflight(plain(open_checkpoint(tmp_path / "base")), plain(open_checkpoint(tmp_path / "finetuned")))
    assert all(pair.base and pair.base.name == name for name, pair in pairs.items())


def test_the_rebuilt_model_of_a_wrapped_one_loads_whole(tmp_path: Path) -> None:
    save_llama(tmp_path)
    rename(tmp_path / "finetuned", WRAPPERS["DDP of torch.compile"])
    rename(tmp_path / "base", WRAPPERS["PEFT"])
    delta = compress(Store(tmp_path / "store"), tmp_path / "base", tmp_path / "finetuned", config_of(4))
    reconstruct(delta, open_side(str(tmp_path / "base")), tmp_path / "out")
    load_whole(tmp_path / "out", "LlamaForCausalLM")


def test_the_folder_that_transformers_is_given_has_a_wrapped_models_own_names(tmp_path: Path) -> None:
    shutil.copytree(tinyzoo.path("math"), tmp_path / "math")
    rename(tmp_path / "math", WRAPPERS["DDP"])
    with folder_of(open_side(str(tmp_path / "math"))) as folder:
        assert list(open_checkpoint(folder).tensors) == list(open_checkpoint(tinyzoo.path("math")).tensors)
        load_whole(folder, "LlamaForCausalLM")


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight",
        "model.layers.0.self_attn.q_proj.lora_magnitude_vector.default.weight",
        "lm_head.modules_to_save.default.weight",
    ],
)
def test_an_adapter_beside_the_weights_is_refused(name: str, tmp_path: Path) -> None:
    save_llama(tmp_path)
    file = tmp_path / "finetuned" / "model.safetensors"
    save_file({**load_file(file), name: torch.zeros(2, 2)}, file)
    with pytest.raises(CheckpointError, match=r"holds an adapter beside the weights.*merge_and_unload"):
        plain(open_checkpoint(tmp_path / "finetuned"))


def test_names_with_and_without_a_wrapper_for_one_tensor_are_refused(tmp_path: Path) -> None:
    save_llama(tmp_path)
    file = tmp_path / "finetuned" / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "model._orig_mod.norm.weight": tensors["model.norm.weight"].clone()}, file)
    with pytest.raises(CheckpointError, match="holds tensors twice"):
        plain(open_checkpoint(tmp_path / "finetuned"))


TEXT = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
VISION = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}


def llava() -> PreTrainedModel:
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**TEXT), vision_config=transformers.CLIPVisionConfig(**VISION)
    )
    return make_model(config, "LlavaForConditionalGeneration", torch.bfloat16)


def gemma3() -> PreTrainedModel:
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**TEXT), vision_config=transformers.SiglipVisionConfig(**VISION)
    )
    return make_model(config, "Gemma3ForConditionalGeneration", torch.bfloat16)


def old(name: str) -> str:
    """Return what a vision-language model of before transformers 4.52 calls a tensor."""
    name = re.sub(r"^model\.language_model\.", "language_model.model.", name)
    return re.sub(r"^lm_head\.", "language_model.lm_head.", re.sub(r"^model\.(vision|multi)", r"\1", name))


def new(name: str) -> str:
    """Return what one of after it does."""
    name = re.sub(r"^language_model\.model\.", "model.language_model.", name)
    return re.sub(r"^language_model\.lm_head\.", "lm_head.", re.sub(r"^(vision|multi)", r"model.\1", name))


VISION_LANGUAGE = {"llava": llava, "gemma3": gemma3}


@pytest.mark.parametrize("names", [(old, new), (new, old)], ids=["old base", "new base"])
@pytest.mark.parametrize("make", VISION_LANGUAGE.values(), ids=VISION_LANGUAGE)
def test_old_and_new_names_of_vision_language_models_are_paired(
    make: Callable[[], PreTrainedModel], names: tuple[Rename, Rename], tmp_path: Path
) -> None:
    model = make()
    for side, renamed in zip(("base", "finetuned"), names, strict=True):
        model.save_pretrained(tmp_path / side)
        rename(tmp_path / side, renamed)
        load_whole(tmp_path / side, type(model).__name__)  # transformers knows both
        tune_(model)
    base, finetuned = (open_checkpoint(tmp_path / side) for side in ("base", "finetuned"))
    pairs = preflight(base, finetuned)
    assert {name: pair.base and new(pair.base.name) for name, pair in pairs.items()} == {
        name: new(name) for name in finetuned.tensors
    }
    assert require_complete(finetuned, base) == ()


@pytest.mark.parametrize("renamed", [old, new])
@pytest.mark.parametrize("make", VISION_LANGUAGE.values(), ids=VISION_LANGUAGE)
def test_the_language_model_of_a_base_that_sees_is_paired_and_the_rest_left(
    make: Callable[[], PreTrainedModel], renamed: Rename, tmp_path: Path
) -> None:
    model = make()
    model.save_pretrained(tmp_path / "base")
    rename(tmp_path / "base", renamed)
    text = model.config.get_text_config()
    kind = {"llama": "LlamaForCausalLM", "gemma3_text": "Gemma3ForCausalLM"}[text.model_type]
    finetuned = make_model(text, kind, torch.bfloat16)
    finetuned.model.load_state_dict(model.model.language_model.state_dict())
    finetuned.lm_head.load_state_dict(model.lm_head.state_dict())
    tune_(finetuned).save_pretrained(tmp_path / "finetuned")
    pairs = preflight(*(open_checkpoint(tmp_path / side) for side in ("base", "finetuned")))
    assert {name: pair.base and new(pair.base.name) for name, pair in pairs.items()} == {
        name: re.sub(r"^model\.", "model.language_model.", name) for name in pairs
    }
    delta = compress(Store(tmp_path / "store"), tmp_path / "base", tmp_path / "finetuned", config_of(4))
    reconstruct(delta, open_side(str(tmp_path / "base")), tmp_path / "out")
    load_whole(tmp_path / "out", kind)


def test_two_places_that_the_layers_could_lie_at_are_no_pair(tmp_path: Path) -> None:
    save_llama(tmp_path)
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    twice = {f"model.{tower}.{name}": tensor.clone() for tower in ("a", "b") for name, tensor in tensors.items()}
    save_file(twice, tmp_path / "base" / "model.safetensors")
    pairs = pair_tensors(*(open_checkpoint(tmp_path / side) for side in ("base", "finetuned")))
    assert {pair.base for pair in pairs.values()} == {None}


def empty(root: Path, side: str) -> None:
    file = root / side / "model.safetensors"
    save_file({name: torch.empty(0, dtype=torch.bfloat16) for name in load_file(file)}, file)


@pytest.mark.parametrize("side", ["base", "finetuned"])
def test_the_empty_tensors_of_zero_3_are_told_from_another_base(side: str, tmp_path: Path) -> None:
    save_llama(tmp_path)
    empty(tmp_path, side)
    with pytest.raises(MismatchError, match=rf"tensors of {tmp_path / side} are empty, as DeepSpeed's ZeRO-3"):
        preflight(*(open_checkpoint(tmp_path / each) for each in ("base", "finetuned")))


def test_names_that_nobody_knows_are_told_from_another_base(tmp_path: Path) -> None:
    save_llama(tmp_path)
    rename(tmp_path / "finetuned", put(r"layers\.(\d+)", r"block.\1.of"))
    with pytest.raises(MismatchError, match=r"None of the names of their layers' tensors is told from the other's"):
        preflight(*(open_checkpoint(tmp_path / each) for each in ("base", "finetuned")))
