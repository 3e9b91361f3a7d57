"""Preflight: every mismatch in one message, before any weight is read."""

from pathlib import Path
from typing import Any

import pytest
import torch

from impart_core.base.errors import MismatchError
from impart_core.checkpoint.index import open_checkpoint
from impart_core.checkpoint.preflight import preflight
from tests.support import llama_shapes, random_tensors, save_checkpoint

TENSORS = random_tensors(llama_shapes(layers=3))


def check(
    root: Path,
    finetuned: dict[str, torch.Tensor],
    ours: dict[str, Any] | None = None,
    theirs: dict[str, Any] | None = None,
) -> dict[str, str | None]:
    """Return the base's tensor that each fine-tuned one is paired with, by name."""
    base = open_checkpoint(save_checkpoint(root / "base", TENSORS, ours))
    pairs = preflight(base, open_checkpoint(save_checkpoint(root / "finetuned", finetuned, theirs)))
    return {name: pair.base.name if pair.base else None for name, pair in pairs.items()}


SAME = {name: name for name in TENSORS}


def message(root: Path, finetuned: dict[str, torch.Tensor], **configs: dict[str, Any]) -> str:
    with pytest.raises(MismatchError) as caught:
        check(root, finetuned, **configs)
    return str(caught.value)


def test_checkpoints_of_one_shape_fit_whatever_their_floating_dtype(tmp_path: Path) -> None:
    assert check(tmp_path, {name: tensor.float() for name, tensor in TENSORS.items()}) == SAME


def test_settings_that_say_nothing_about_the_weights_may_differ(tmp_path: Path) -> None:
    assert check(tmp_path, TENSORS, {"torch_dtype": "float16"}, {"torch_dtype": "bfloat16", "vocab_size": 40}) == SAME


def test_every_mismatch_is_in_one_message(tmp_path: Path) -> None:
    changed = {
        **TENSORS,
        "model.layers.0.extra.weight": torch.zeros(2, 3),
        "model.embed_tokens.weight": torch.zeros(39, 32),
    }
    del changed["model.layers.0.mlp.up_proj.weight"]
    changed["model.norm.weight"] = torch.zeros(32, dtype=torch.int64)
    text = message(tmp_path, changed, ours={"vocab_size": 40}, theirs={"vocab_size": 39, "model_type": "qwen2"})
    for part in (
        "(6 mismatches)",
        "model_type: base 'llama', fine-tuned 'qwen2'",
        "vocab_size: base 40, fine-tuned 39",
        "model.layers.0.mlp.up_proj.weight: only in the base",
        "model.layers.0.extra.weight: only in the fine-tuned",
        "model.embed_tokens.weight: shape [40, 32] in the base, [39, 32] in the fine-tuned",
        "model.norm.weight: dtype BF16 in the base, I64 in the fine-tuned",
        str(tmp_path / "base"),
        str(tmp_path / "finetuned"),
    ):
        assert part in text


def test_a_vocabulary_may_grow_and_each_side_may_have_tensors_of_its_own(tmp_path: Path) -> None:
    changed = {**TENSORS, "model.embed_tokens.weight": torch.zeros(43, 32), "score.weight": torch.zeros(2, 32)}
    changed["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(32)
    del changed["lm_head.weight"]
    found = check(tmp_path, changed, {"vocab_size": 40}, {"vocab_size": 43, "architectures": ["LlamaForScore"]})
    own = {"score.weight": None, "model.layers.0.self_attn.q_proj.bias": None}
    assert found == {name: name for name in TENSORS if name != "lm_head.weight"} | own


def test_what_lies_outside_of_layers_may_be_on_one_side_only(tmp_path: Path) -> None:
    pooler = {"pooler.dense.weight": torch.zeros(32, 32)}
    save_checkpoint(tmp_path / "with", {**TENSORS, **pooler})
    save_checkpoint(tmp_path / "without", TENSORS)
    one, other = (open_checkpoint(tmp_path / side) for side in ("with", "without"))
    assert preflight(one, other).keys() == TENSORS.keys()
    assert preflight(other, one)["pooler.dense.weight"].base is None


def test_a_bias_of_the_head_grows_with_it_and_one_of_a_layer_may_not(tmp_path: Path) -> None:
    layers = "model.layers.0.self_attn.q_proj.bias"
    base = save_checkpoint(tmp_path / "base", {**TENSORS, "lm_head.bias": torch.zeros(40), layers: torch.zeros(32)})
    grown = {**TENSORS, "lm_head.weight": torch.zeros(43, 32), "lm_head.bias": torch.zeros(43), layers: torch.zeros(33)}
    with pytest.raises(MismatchError, match=r"\(1 mismatch\)") as caught:
        preflight(open_checkpoint(base), open_checkpoint(save_checkpoint(tmp_path / "grown", grown)))
    assert "q_proj.bias: shape [32] in the base, [33]" in str(caught.value)


def test_a_projection_may_not_grow(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    text = message(tmp_path, {**TENSORS, name: torch.zeros(49, 32)})
    assert "mlp.up_proj.weight: shape [48, 32] in the base, [49, 32] in the fine-tuned" in text


def test_the_same_mismatch_in_every_layer_is_one_line(tmp_path: Path) -> None:
    changed = {
        name: torch.zeros(20, 32) if "k_proj" in name else tensor
        for name, tensor in TENSORS.items()
        if "up_proj" not in name
    }
    lines = [line for line in message(tmp_path, changed).splitlines() if line.startswith("  - ")]
    assert lines == [
        "  - model.layers.*.mlp.up_proj.weight: only in the base (3 times)",
        "  - model.layers.*.self_attn.k_proj.weight: shape [16, 32] in the base, [20, 32] in the fine-tuned (3 times)",
    ]


def test_weights_may_be_tied_on_one_side_only(tmp_path: Path) -> None:
    tied = {name: tensor for name, tensor in TENSORS.items() if name != "lm_head.weight"}
    found = check(tmp_path, tied, {"tie_word_embeddings": False}, {"tie_word_embeddings": True})
    assert found == {name: name for name in tied}
