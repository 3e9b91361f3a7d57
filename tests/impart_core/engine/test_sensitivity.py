"""Coding by sensitivity as a whole: what is measured, what it changes, and what is left of it in the store."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from impart_core.artifacts.sensitivity import SensitivityContent
from impart_core.base.errors import ConfigError
from impart_core.blocks.request import CompressConfig
from impart_core.calibrate import sensitivity as measuring
from impart_core.calibrate.logits import divergence, load_causal_model, predictions
from impart_core.calibrate.sensitivity import Sums
from impart_core.checkpoint.index import open_checkpoint
from impart_core.checkpoint.reader import read_tensor
from impart_core.engine import sensitivity
from impart_core.engine.plan import make_plan
from impart_core.store.store import Store
from impart_core.store.verify import verify
from tests.impart_core.engine.test_distil import LENGTH, LLAMA, VOCABULARY, Pair, save_pair
from tests.impart_core.pipeline import compress, config_of

transformers = pytest.importorskip("transformers")

GPT2: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": LENGTH}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return save_pair(tmp_path_factory.mktemp("llama"), transformers.LlamaConfig(**LLAMA))


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(VOCABULARY, (12, LENGTH), generator=torch.Generator().manual_seed(1))


def request(**options: Any) -> CompressConfig:
    return config_of(16, method="ecsq", options={"metric": "kfac", **options})


def test_factors_are_those_of_inputs_and_gradients(pair: Pair, tokens: torch.Tensor) -> None:
    """Against autograd itself: of a weight W and its gradient, x and g of every token are known to a module's hooks."""
    finetuned, name = open_checkpoint(pair[1]), "model.layers.1.mlp.down_proj.weight"
    tensors = {key: read_tensor(info) for key, info in finetuned.tensors.items()}
    wanted = torch.cat(list(predictions(load_causal_model(finetuned, tensors, torch.device("cpu")), tokens)))
    off = tensors | {name: tensors[name] * 0.5}
    sums = Sums()
    sums.add(load_causal_model(finetuned, off, torch.device("cpu")), {name: off[name]}, tokens, wanted)
    (found,) = sums.sensitivities().values()

    model = transformers.AutoModelForCausalLM.from_pretrained(pair[1], dtype=torch.float32)
    model.load_state_dict(off)
    seen: dict[str, torch.Tensor] = {}

    def keep(_: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        output.retain_grad()
        seen["x"], seen["y"] = inputs[0].detach(), output

    model.model.layers[1].mlp.down_proj.register_forward_hook(keep)
    weights = measuring.foreseen(wanted, tokens)
    (weights * divergence(model(input_ids=tokens).logits, wanted)).sum().backward()
    x, g = (rows.flatten(0, 1) for rows in (seen["x"], seen["y"].grad))
    torch.testing.assert_close(found.columns, x.T @ x, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.rows, g.T @ g, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_every_matrix_is_coded_by_its_sensitivity_of_which_nothing_stays_in_the_store(
    config: dict[str, Any], tokens: torch.Tensor, tmp_path: Path
) -> None:
    made = transformers.LlamaConfig if config is LLAMA else transformers.GPT2Config
    pair, store = save_pair(tmp_path, made(**config)), Store(tmp_path / "store")
    plain = compress(store, *pair, config_of(16, method="ecsq", options={"domain": "factors"}))
    weighted = compress(store, *pair, request(domain="factors"), tokens=tokens)
    assert verify(store, weighted.manifest.id).faults == ()
    assert weighted.content.cr_projection >= 16
    before, after = (
        {name: entry.fidelity for block in delta.blocks for name, entry in block.content.tensors.items()}
        for delta in (plain, weighted)
    )
    coded = [name for name, fidelity in before.items() if fidelity]
    assert len(coded) == (14 if config is LLAMA else 8)
    assert all(after[name] != before[name] for name in coded)
    kinds = {store.manifest(found).content.kind for found in store.ids()}
    assert kinds == {"block", "delta", "calibration"}


def test_a_killed_run_goes_on_with_what_was_measured(
    pair: Pair, tokens: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = compress(Store(tmp_path / "whole"), *pair, request(), tokens=tokens)
    store, runs = Store(tmp_path / "killed"), list[int]()
    publish, add = sensitivity.publish_sensitivity, Sums.add

    def die_at_the_second(store: Store, *given: Any) -> Any:
        if any(isinstance(store.manifest(found).content, SensitivityContent) for found in store.ids()):
            raise KeyboardInterrupt
        return publish(store, *given)

    with monkeypatch.context() as patch:
        patch.setattr(sensitivity, "publish_sensitivity", die_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            compress(store, *pair, request(), tokens=tokens)
    monkeypatch.setattr(Sums, "add", counting(add, runs))
    assert compress(store, *pair, request(), tokens=tokens).manifest.id == wanted.manifest.id
    assert len(runs) == 3
    again = compress(store, *pair, request(), tokens=tokens)
    assert len(runs) == 3  # the delta is there
    assert [block.files for block in again.blocks] == [block.files for block in wanted.blocks]


def test_text_is_asked_for_and_memory_is_planned(pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'ecsq' with these settings needs calibration text"):
        compress(Store(tmp_path), *pair, request())
    with pytest.raises(ConfigError, match="metric kfac has no effect on entries"):
        request(domain="entries")
    with pytest.raises(ConfigError, match="feedback has no effect with metric frobenius"):
        request(metric="frobenius", feedback=1.0)
    sides = open_checkpoint(pair[0]), open_checkpoint(pair[1])
    assert make_plan(*sides, config_of(16, method="ecsq")).sensitivity_bytes == 0
    assert make_plan(*sides, config_of(16, method="ecsq")).factors_bytes > 0
    assert make_plan(*sides, request()).factors_bytes == 0  # none are stored
    factors = 2 * 4 * (2 * (32**2 + 32**2) + 2 * (16**2 + 32**2) + 3 * (48**2 + 32**2))
    assert make_plan(*sides, request()).sensitivity_bytes > 2 * factors


def counting(add: Callable[..., None], runs: list[int]) -> Callable[..., None]:
    def counted(*given: Any) -> None:
        runs.append(1)
        add(*given)

    return counted
