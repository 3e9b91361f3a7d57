"""Layers that are no plain attention and MLP: they run one by one as in the whole model, or a sentence says why not."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from impart_core.base.errors import CalibrationError
from impart_core.calibrate.architecture import model_code
from impart_core.calibrate.layer import Batch
from impart_core.calibrate.model import CausalModel
from impart_core.checkpoint.index import Checkpoint, open_checkpoint
from impart_core.checkpoint.layout import OUTSIDE, group_blocks
from impart_core.checkpoint.model import Gaps, find_gaps
from impart_core.checkpoint.reader import read_tensor

pytestmark = pytest.mark.e2e

COMMON: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
MAMBA2 = {"mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_chunk_size": 8, "mamba_n_groups": 1}
RUN: dict[str, dict[str, Any]] = {
    "bamba": {**MAMBA2, "attn_layer_indices": [1]},  # returns tuples, writes an infinite float into config.json
    "granitemoehybrid": {**MAMBA2, "shared_intermediate_size": 16, "layer_types": ["mamba", "attention"] * 2},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2, "num_experts": 2, "use_mamba_kernels": False},
    "mamba": {"state_size": 8},
    "falcon_mamba": {"state_size": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "recurrent_gemma": {"head_dim": 8, "lru_width": 32},
}
TOKENS = torch.randint(3, 100, (2, 16), generator=torch.Generator().manual_seed(1))


def save(folder: Path, kind: str, **settings: Any) -> tuple[Any, Checkpoint]:
    torch.manual_seed(0)
    known = transformers.CONFIG_MAPPING[kind]
    model = transformers.AutoModelForCausalLM.from_config(known(**settings)).float().eval()
    model.save_pretrained(folder)
    return model, open_checkpoint(folder)


def run_layer_by_layer(checkpoint: Checkpoint) -> torch.Tensor:
    """What the last layer returns."""
    model = CausalModel.of(checkpoint, torch.device("cpu"))
    blocks = {
        block.name: {name: read_tensor(checkpoint.tensors[name]) for name in block.tensors}
        for block in group_blocks(checkpoint.tensors)
    }
    hidden = model.embed(blocks[OUTSIDE], TOKENS)
    for name in model.layers(checkpoint.tensors):
        with model.layer(name, blocks[name]) as layer:
            matrices = [tensor for tensor, weight in blocks[name].items() if weight.dim() == 2]
            groups, unseen = layer.groups([Batch.of(hidden)], matrices)
            assert sorted([*unseen, *(member for group in groups for member in group.names)]) == sorted(matrices)
            hidden = layer.run(hidden)
    return hidden


@pytest.mark.parametrize("kind", RUN)
def test_a_hybrids_layers_give_what_the_whole_model_gives(kind: str, tmp_path: Path) -> None:
    whole, checkpoint = save(tmp_path, kind, **COMMON, **RUN[kind])
    assert find_gaps(checkpoint) == Gaps((), ())
    returned: list[Any] = []
    stacks = (module for module in whole.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == 4)
    next(stacks)[-1].register_forward_hook(lambda *given: returned.append(given[-1]))
    with torch.no_grad():
        whole(input_ids=TOKENS, use_cache=False)
    expected = returned[0] if isinstance(returned[0], torch.Tensor) else returned[0][0]
    torch.testing.assert_close(run_layer_by_layer(checkpoint), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "settings", "why"),
    [
        (
            "cpmant",
            {"vocab_size": 128, "hidden_size": 32, "num_attention_heads": 4, "dim_head": 8, "dim_ff": 48}
            | {"num_hidden_layers": 2},
            "more than hidden states",
        ),
        ("hy_v4", {**COMMON, "head_dim": 8, "num_experts": 2, "moe_intermediate_size": 16}, "hidden states of shape"),
        ("rwkv", {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2}, "transformers' code for it failed"),
    ],
)
def test_layers_that_cannot_be_run_one_by_one_are_refused_in_a_sentence(
    kind: str, settings: dict[str, Any], why: str, tmp_path: Path
) -> None:
    _, checkpoint = save(tmp_path, kind, **settings)
    with pytest.raises(CalibrationError, match=rf"(?s){tmp_path}.*{why}.*Use a method that needs no calibration"):
        run_layer_by_layer(checkpoint)


def test_a_failure_of_a_models_code_is_a_sentence_and_lack_of_memory_is_not() -> None:
    with pytest.raises(CalibrationError, match=r"somewhere cannot be run .*ZeroDivisionError"), model_code("somewhere"):
        _ = 1 // 0
    with pytest.raises(torch.OutOfMemoryError), model_code("somewhere"):
        raise torch.OutOfMemoryError("full")
    with pytest.raises(RuntimeError, match="ALLOC_FAILED"), model_code("somewhere"):
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
