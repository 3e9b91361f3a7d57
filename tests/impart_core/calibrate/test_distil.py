"""Distilled scales bring the logits closer to the fine-tune's, whatever the checkpoint's architecture names things."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from impart_core import tinyzoo
from impart_core.base.errors import CalibrationError, ConfigError
from impart_core.blocks.request import CompressConfig
from impart_core.calibrate.distil import DistilOptions, distil_scales
from impart_core.checkpoint.index import Checkpoint, open_checkpoint
from impart_core.checkpoint.pairing import pair_tensors
from impart_core.checkpoint.reader import read_tensor
from impart_core.delta.extract import extract_delta
from impart_core.methods import METHODS
from impart_core.methods.base import Projection
from impart_core.tinyzoo.tokenizer import PAD, vocabulary
from impart_core.tinyzoo.training import task_batches
from tests.impart_core.pipeline import config_of
from tests.pretend_device import PRETEND

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")

LENGTH, VOCABULARY = 24, 40
Scales = dict[str, torch.Tensor]


def bitdelta(cr: float = 16, seed: int = 0, **options: bool) -> CompressConfig:
    return config_of(cr, method="bitdelta", seed=seed, options={"distil": True, **options})


def distil(
    folders: tuple[Path, Path],
    config: CompressConfig,
    tokens: torch.Tensor,
    progress: Callable[[int, int], None] | None = None,
    device: str | torch.device = "cpu",
    **options: Any,
) -> Scales:
    base, finetuned = map(open_checkpoint, folders)
    return distil_scales(
        base,
        finetuned,
        pair_tensors(base, finetuned),
        config,
        tokens,
        options=DistilOptions(**{"steps": 4, "rate": 0.1, **options}),
        device=torch.device(device),
        progress=progress,
    )


def encoded(folders: tuple[Path, Path], config: CompressConfig, scales: Scales) -> dict[str, torch.Tensor]:
    """Return each matrix's delta as the method stores and decodes it, with these scales where there are any."""
    base, finetuned = map(open_checkpoint, folders)
    method, deltas = METHODS.get("bitdelta"), {}
    for name, pair in pair_tensors(base, finetuned).items():
        if pair.role == "projection" and pair.base:
            delta = extract_delta(read_tensor(pair.base), read_tensor(pair.finetuned), name)
            m, n = delta.shape
            projection = Projection(name, (m, n), lambda delta=delta: delta, lambda: None, scales=scales.get(name))
            deltas[name] = method.decode(method.encode(projection, config), name, (m, n), config.seed)
    return deltas


def load(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def logit_error(folders: tuple[Path, Path], config: CompressConfig, tokens: torch.Tensor, scales: Scales) -> float:
    """Return the mean squared difference of logits between the fine-tune and base + what is decoded."""
    base, compressed = open_checkpoint(folders[0]), load(folders[1])
    wanted = compressed(input_ids=tokens).logits
    prefix = f"{compressed.base_model_prefix}."
    parameters = {name.removeprefix(prefix): value for name, value in compressed.named_parameters()}
    for name, delta in encoded(folders, config, scales).items():
        parameters[name.removeprefix(prefix)].copy_(read_tensor(base.tensors[name]).float() + delta)
    return float(torch.nn.functional.mse_loss(compressed(input_ids=tokens).logits, wanted))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a small Llama and its fine-tune that transformers can load."""
    return tiny_pair(
        tmp_path_factory.mktemp("llama"),
        transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=LENGTH,
        ),
    )


def tiny_pair(folder: Path, config: Any) -> tuple[Path, Path]:
    """Save a model and a fine-tune whose mean |ΔW| is far above what matters: norms hide where the delta is large."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    half = 16  # of the hidden dimensions
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1 and len(parameter) == 2 * half:
                parameter[:half] = 0
        model.save_pretrained(folder / "base")
        for parameter in model.parameters():
            if parameter.dim() > 1:
                delta = 0.02 * torch.randn(parameter.shape).sign()
                delta[..., :half] *= 5
                parameter += delta
    model.save_pretrained(folder / "finetuned")
    return folder / "base", folder / "finetuned"


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(VOCABULARY, (24, LENGTH), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("cr", [4, 20])
def test_a_few_steps_lower_the_error_of_the_logits_that_decoded_scales_give(
    cr: float, per_row: bool, folders: tuple[Path, Path], tokens: torch.Tensor
) -> None:
    config = config_of(cr, method="bitdelta", accounting="paper", options={"per_row": per_row})
    scales = distil(folders, config, tokens, steps=10)
    deltas = encoded(folders, config, {})
    assert scales.keys() == deltas.keys()
    for name, found in scales.items():
        assert (found.dtype, len(found)) == (torch.float32, len(deltas[name]) if per_row else 1)
        assert not found.requires_grad
    before, after = (logit_error(folders, config, tokens, given) for given in ({}, scales))
    assert after < 0.9 * before


def test_equal_requests_give_equal_scales_and_another_seed_other_ones(
    folders: tuple[Path, Path], tokens: torch.Tensor
) -> None:
    one, same, other = (distil(folders, bitdelta(4, seed), tokens) for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_scales_that_get_worse_are_not_returned_and_a_warning_says_so(
    folders: tuple[Path, Path], tokens: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "impart_core"):
        kept = distil(folders, bitdelta(4), tokens, rate=1e4)
    assert "found no scales that are better than the initial ones" in caplog.text
    for name, delta in encoded(folders, bitdelta(4), {}).items():
        assert kept[name] == delta.abs().max()


def test_progress_is_told_after_each_step(folders: tuple[Path, Path], tokens: torch.Tensor) -> None:
    told: list[tuple[int, int]] = []
    distil(folders, bitdelta(4), tokens[:1], lambda done, steps: told.append((done, steps)), steps=3)
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_layer_that_keeps_its_weight_turned_and_its_name_without_the_bodys_prefix_is_trained_too(
    tmp_path: Path, tokens: torch.Tensor
) -> None:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=4, n_positions=LENGTH, tie_word_embeddings=False
    )
    pair = tiny_pair(tmp_path, config)
    request = bitdelta(4, per_row=True)
    scales = distil(pair, request, tokens, steps=10)
    assert scales.keys() == encoded(pair, request, {}).keys()
    assert logit_error(pair, request, tokens, scales) < 0.9 * logit_error(pair, request, tokens, {})


def test_what_transformers_renames_is_left_to_the_method(tmp_path: Path, tokens: torch.Tensor) -> None:
    config = transformers.MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=2,
        max_position_embeddings=LENGTH,
    )
    scales = distil(tiny_pair(tmp_path, config), bitdelta(4), tokens)
    attention = {f"model.layers.0.self_attn.{side}_proj.weight" for side in "qkvo"}
    assert scales.keys() == attention


def test_a_fine_tune_that_is_its_base_has_nothing_to_distil(folders: tuple[Path, Path], tokens: torch.Tensor) -> None:
    with pytest.raises(CalibrationError, match="has no projection that differs from"):
        distil((folders[0], folders[0]), bitdelta(4), tokens)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (torch.zeros(4, dtype=torch.long), "are torch.int64 of shape \\[4\\]; expected integers"),
        (torch.zeros(0, 4, dtype=torch.long), "of shape \\[0, 4\\]"),
        (torch.zeros(2, 4), "are torch.float32"),
        (torch.full((2, 4), 40), "from 40 to 40, but the model knows 0 to 39"),
        (torch.full((2, 4), -100), "from -100 to -100"),
        (torch.zeros(2, 25, dtype=torch.int32), "have 25 tokens, but the model takes 24"),
    ],
)
def test_tokens_that_the_model_cannot_take_are_answered_with_what_it_can(
    given: torch.Tensor, sentence: str, folders: tuple[Path, Path]
) -> None:
    with pytest.raises(CalibrationError, match=sentence):
        distil(folders, bitdelta(4), given)


def test_a_model_that_cannot_be_loaded_is_named(
    folders: tuple[Path, Path], tokens: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, finetuned = map(open_checkpoint, folders)
    elsewhere = Checkpoint("s3://models/llama", finetuned.config, finetuned.tensors, finetuned.carried, 0)
    with pytest.raises(CalibrationError, match="s3://models/llama is not a folder of this machine"):
        distil_scales(base, elsewhere, {}, bitdelta(), tokens, options=DistilOptions(), device=torch.device("cpu"))
    (tmp_path / "config.json").write_text('{"model_type": "nonesuch"}')
    (tmp_path / "model.safetensors").symlink_to(folders[1] / "model.safetensors")
    with pytest.raises(CalibrationError, match="cannot be loaded for calibration"):
        distil((folders[0], tmp_path), bitdelta(), tokens)


def test_options_are_positive() -> None:
    for name in ("steps", "batch", "rate"):
        with pytest.raises(ConfigError, match=name):
            DistilOptions(**{name: 0})


@pytest.mark.e2e
def test_on_the_tiny_zoo_ten_steps_take_a_quarter_off_the_logit_error() -> None:
    zoo = tinyzoo.path("base"), tinyzoo.path("math")
    texts, _ = next(task_batches("math", 64, seed=3))
    tokens = texts[texts != vocabulary()[PAD]][: 24 * 48].view(24, 48)
    config = bitdelta(16)
    scales = distil(zoo, config, tokens, steps=10)
    assert logit_error(zoo, config, tokens, scales) < 0.75 * logit_error(zoo, config, tokens, {})


@pytest.mark.parametrize("per_row", [False, True])
def test_a_device_gives_the_same_scales(per_row: bool, folders: tuple[Path, Path], tokens: torch.Tensor) -> None:
    here = distil(folders, bitdelta(per_row=per_row), tokens)
    # The engine of gradients would run a thread for the device, in which Python code cannot end.
    with torch.autograd.set_multithreading_enabled(False):
        there = distil(folders, bitdelta(per_row=per_row), tokens, device=PRETEND)
    assert here.keys() == there.keys()
    for name, scales in here.items():
        assert there[name].device.type == "cpu"
        torch.testing.assert_close(there[name], scales, rtol=1e-5, atol=0)  # gradients are summed in another order
