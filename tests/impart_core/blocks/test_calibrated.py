"""A calibrated layer: told by few tokens, it says so; matrices that are too small for the ratio are kept in it."""

import logging
from pathlib import Path

import pytest
import torch

from impart_core.apply.load import load_state_dict
from impart_core.artifacts.block import block_content
from impart_core.checkpoint.index import open_checkpoint
from impart_core.checkpoint.layout import Role
from impart_core.checkpoint.reader import read_tensor
from impart_core.store.store import Store
from tests.architectures import ARCHITECTURES, make_model, save_pair, tune_
from tests.impart_core.pipeline import compress, config_of


@pytest.mark.parametrize(("shape", "warned"), [((4, 4), True), ((8, 50), False)])
def test_fewer_tokens_than_columns_are_warned_of_once_a_layer(
    shape: tuple[int, int], warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base, finetuned = save_pair(tmp_path, "llama")
    tokens = torch.randint(1, 100, shape, generator=torch.Generator().manual_seed(0))
    config = config_of(8, method="delta-come", options={"ladder": "2"})
    with caplog.at_level(logging.WARNING):
        compress(Store(tmp_path / "store"), base, finetuned, config, tokens=tokens)
    told = [record.getMessage() for record in caplog.records if "calibrated by fewer tokens" in record.getMessage()]
    assert len(told) == (2 if warned else 0)  # layers
    assert all("16 of" in text and "Give more text" in text for text in told)


def test_stacks_of_matrices_too_small_for_the_ratio_are_kept_beside_calibrated_ones(tmp_path: Path) -> None:
    wanted = ARCHITECTURES["gpt-oss"]
    small = {"hidden_size": 256, "num_attention_heads": 20, "intermediate_size": 16}
    small |= {"num_local_experts": 1, "num_experts_per_tok": 1}
    model = make_model(type(wanted.config())(**{**wanted.settings, **small}), wanted.model, torch.bfloat16)
    for side in ("base", "finetuned"):
        model.save_pretrained(tmp_path / side)
        tune_(model)
    base, finetuned = (open_checkpoint(tmp_path / side) for side in ("base", "finetuned"))
    tokens = torch.randint(1, 100, (2, 16), generator=torch.Generator().manual_seed(0))
    config = config_of(16, method="delta-come", options={"ladder": "16", "fill": False})
    delta = compress(
        Store(tmp_path / "store"), tmp_path / "base", tmp_path / "finetuned", config, tokens=tokens, keep_factors=True
    )
    methods = {
        name: entry.method
        for made in delta.blocks
        for name, entry in block_content(made).tensors.items()
        if entry.role is Role.PROJECTION
    }
    experts = {name for name in methods if name.endswith("experts.down_proj")}  # of 16×256; gate_up has room enough
    assert len(experts) == 2
    assert all(method == ("keep" if name in experts else "delta-come") for name, method in methods.items())
    rebuilt = load_state_dict(delta, base)
    for name in experts:
        ours, theirs = (read_tensor(side.tensors[name]).float() for side in (base, finetuned))
        # Half of the last of float16's eleven bits of the largest change, then one cast to bfloat16, of eight.
        within = 2**-12 * float((theirs - ours).abs().max()) + 2**-8 * float(theirs.abs().max())
        assert float((rebuilt[name].float() - theirs).abs().max()) <= within
