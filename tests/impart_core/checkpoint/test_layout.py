"""Roles and blocks from names and shapes."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from impart_core.checkpoint.header import DTYPES, TensorInfo
from impart_core.checkpoint.layout import OUTSIDE, Role, group_blocks, in_layer, number_of_experts, role_of
from tests.support import llama_shapes


def info(name: str, shape: tuple[int, ...] = (4, 6), dtype: str = "BF16") -> TensorInfo:
    end = DTYPES[dtype].itemsize
    for size in shape:
        end *= size
    return TensorInfo(name, dtype, shape, Path("file"), 0, end)


MIXTURE = {"num_local_experts": 4}


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "role"),
    [
        ("model.layers.0.self_attn.q_proj.weight", (4, 6), "BF16", Role.PROJECTION),
        ("model.layers.11.mlp.experts.3.w1.weight", (4, 6), "F32", Role.PROJECTION),
        ("transformer.h.0.attn.c_attn.weight", (4, 6), "F16", Role.PROJECTION),
        ("bert.encoder.layer.0.attention.self.query.weight", (4, 6), "F32", Role.PROJECTION),
        ("bert.pooler.dense.weight", (4, 6), "F32", Role.PROJECTION),
        ("model.projector.weight", (4, 6), "BF16", Role.PROJECTION),
        ("0.weight", (4, 6), "F16", Role.PROJECTION),
        ("model.layers.0.mlp.experts.gate_up_proj", (4, 16, 32), "BF16", Role.PROJECTION),
        ("model.layers.0.mlp.experts.gate_up_proj_bias", (4, 32), "BF16", Role.BIAS),
        ("model.layers.0.mlp.gate.weight", (4, 6), "BF16", Role.ROUTER),
        ("model.layers.0.mlp.router.weight", (6, 4), "BF16", Role.ROUTER),
        ("model.layers.0.mlp.gate.weight", (5, 6), "BF16", Role.PROJECTION),
        ("model.layers.0.mlp.gate_proj.weight", (4, 6), "BF16", Role.PROJECTION),
        ("model.layers.0.mlp.router.classifier.weight", (5, 6), "BF16", Role.ROUTER),
        ("model.layers.0.altup.modality_router.weight", (5, 6), "BF16", Role.ROUTER),
        ("model.layers.0.mlp.experts.gate_up_proj", (0, 16, 32), "BF16", Role.OTHER),
        ("model.layers.0.mixer.A_log", (40, 16), "F32", Role.OTHER),
        ("model.layers.0.conv.weight", (4, 6, 3), "BF16", Role.OTHER),
        ("model.layers.0.gate.weight", (1, 6), "BF16", Role.OTHER),
        ("model.layers.0.gate.weight", (6, 1), "BF16", Role.OTHER),
        ("model.layers.0.table", (4, 6), "I64", Role.OTHER),
        ("model.layers.0.input_layernorm.weight", (6,), "BF16", Role.NORM),
        ("model.layers.0.self_attn.q_norm.weight", (6,), "BF16", Role.NORM),
        ("model.layers.0.self_attn.q_norm.weight", (4, 6), "BF16", Role.NORM),
        ("model.layers.0.norm1.linear.weight", (4, 6), "BF16", Role.PROJECTION),
        ("transformer.h.0.ln_1.weight", (6,), "BF16", Role.NORM),
        ("rwkv.blocks.0.pre_ln.weight", (6,), "BF16", Role.NORM),
        ("rwkv.blocks.0.ln1.weight", (6,), "BF16", Role.NORM),
        ("model.layers.0.self_attn.q_proj.bias", (6,), "BF16", Role.BIAS),
        ("transformer.h.0.ln_1.bias", (6,), "BF16", Role.BIAS),
        ("model.norm.weight", (6,), "BF16", Role.NORM),
        ("model.embed_tokens.weight", (4, 6), "BF16", Role.EMBEDDING),
        ("transformer.wte.weight", (4, 6), "BF16", Role.EMBEDDING),
        ("model.decoder.embed_positions.weight", (4, 6), "BF16", Role.EMBEDDING),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (4, 6), "F32", Role.EMBEDDING),
        ("shared.weight", (4, 6), "BF16", Role.EMBEDDING),
        ("model.layers.0.mlp.shared_expert.up_proj.weight", (4, 6), "BF16", Role.PROJECTION),
        ("lm_head.weight", (4, 6), "BF16", Role.HEAD),
        ("lm_head.dense.weight", (6, 6), "F32", Role.HEAD),
        ("cls.predictions.transform.dense.weight", (6, 6), "F32", Role.HEAD),
        ("classifier.0.weight", (6, 6), "F32", Role.HEAD),
        ("output.weight", (4, 6), "BF16", Role.HEAD),
        ("bert.encoder.layer.0.output.dense.weight", (4, 6), "F32", Role.PROJECTION),
        ("embed_out.weight", (4, 6), "BF16", Role.HEAD),
        ("cls.predictions.decoder.weight", (4, 6), "F32", Role.HEAD),
        ("score.weight", (2, 6), "F32", Role.HEAD),
        ("score.weight", (1, 6), "F32", Role.HEAD),
        ("score.weight", (0, 6), "F32", Role.OTHER),
        ("model.rotary.inv_freq", (6,), "F32", Role.OTHER),
        ("scalar", (), "F32", Role.OTHER),
    ],
)
def test_a_role_comes_from_name_shape_dtype_and_the_number_of_experts(
    name: str, shape: tuple[int, ...], dtype: str, role: Role
) -> None:
    assert role_of(info(name, shape, dtype), MIXTURE) is role


def test_the_number_of_experts_may_stand_in_a_part_of_the_configuration() -> None:
    assert number_of_experts({"num_experts": 8}) == 8
    assert number_of_experts({"text_config": {"n_routed_experts": 16}}) == 16
    assert number_of_experts({"thinker_config": {"audio_config": {}, "text_config": {"moe_num_experts": 6}}}) == 6
    assert number_of_experts({"text_config": None}) is None


def test_a_numbered_head_is_no_layer_of_the_body() -> None:
    assert in_layer("bert.encoder.layer.0.output.dense.weight")
    assert not in_layer("classifier.0.weight")
    assert not in_layer("bert.pooler.dense.weight")


def test_a_block_is_a_layer_and_everything_else_is_one_more_at_the_end() -> None:
    blocks = group_blocks(llama_shapes(layers=2))
    assert [block.name for block in blocks] == ["model.layers.0", "model.layers.1", OUTSIDE]
    assert [len(block.tensors) for block in blocks] == [9, 9, 3]
    assert blocks[-1].tensors == ("lm_head.weight", "model.embed_tokens.weight", "model.norm.weight")


def test_layers_are_ordered_by_number_and_not_by_spelling() -> None:
    blocks = group_blocks(f"model.layers.{number}.w" for number in (10, 9, 2, 100))
    assert [block.name for block in blocks] == [f"model.layers.{number}" for number in (2, 9, 10, 100)]


def test_experts_stay_with_their_layer_and_stacks_of_other_names_apart() -> None:
    blocks = group_blocks(["m.layers.0.experts.5.w", "m.layers.0.q", "vision.blocks.0.q"])
    assert [(block.name, len(block.tensors)) for block in blocks] == [("m.layers.0", 2), ("vision.blocks.0", 1)]


part = st.sampled_from(["model", "layers", "0", "1", "12", "experts", "norm", "weight"])
tensor_names = st.sets(st.lists(part, min_size=1, max_size=5).map(".".join), max_size=20)


@given(names=tensor_names, data=st.data())
def test_every_tensor_is_in_exactly_one_block_whatever_the_order(names: set[str], data: st.DataObject) -> None:
    blocks = group_blocks(sorted(names))
    assert sorted(name for block in blocks for name in block.tensors) == sorted(names)
    assert len({block.name for block in blocks}) == len(blocks)
    assert group_blocks(data.draw(st.permutations(sorted(names)))) == blocks
