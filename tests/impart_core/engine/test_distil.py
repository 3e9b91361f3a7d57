"""Distillation as a stage: the same bytes on disk, a better model, and a training that goes on where it was."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from impart_core.apply.load import load_state_dict
from impart_core.artifacts.block import block_content
from impart_core.artifacts.delta import Delta
from impart_core.artifacts.scales import ScalesContent
from impart_core.base.errors import CalibrationError, ConfigError
from impart_core.blocks.request import CompressConfig
from impart_core.calibrate.distil import Distillation
from impart_core.calibrate.text import CalibrationText
from impart_core.checkpoint.index import open_checkpoint
from impart_core.engine import distil
from impart_core.engine.plan import make_plan
from impart_core.engine.preflight import check_compress
from impart_core.engine.requests import CompressRequest
from impart_core.methods import METHODS
from impart_core.store.store import Store
from impart_core.store.verify import verify
from tests.impart_core.pipeline import compress, config_of, small_options

transformers = pytest.importorskip("transformers")

LENGTH, VOCABULARY = 24, 40
LLAMA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LENGTH,
    "initializer_range": 0.2,
}
TRAINING: dict[str, Any] = {"distil": True, "distil_steps": 10, "distil_rate": 0.05}
Pair = tuple[Path, Path]


def save_pair(folder: Path, config: Any) -> Pair:
    """Save a model and a fine-tune of it, all of whose tensors differ."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    model.save_pretrained(folder / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    model.save_pretrained(folder / "finetuned")
    return folder / "base", folder / "finetuned"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return save_pair(tmp_path_factory.mktemp("llama"), transformers.LlamaConfig(**LLAMA))


@pytest.fixture(scope="module")
def tokens(pair: Pair) -> torch.Tensor:
    """Return text as the fine-tune itself would write it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(pair[1], dtype=torch.float32)
    torch.manual_seed(1)
    begin = torch.randint(VOCABULARY, (48, 1))
    return model.generate(begin, do_sample=True, max_length=LENGTH, min_length=LENGTH, pad_token_id=0)


def request(method: str, cr: float = 8, **options: Any) -> CompressConfig:
    own = small_options(method)
    if "ladder" in own:
        own["ladder"] = "8x2,3x4,2"
    return config_of(cr, method=method, options={**own, **options})


def content_of(delta: Delta) -> ScalesContent:
    """Return what the gains of a delta say."""
    parents = {parent for block in delta.blocks for parent in block.parents}
    (found,) = (made for parent in parents if isinstance(made := delta.store.manifest(parent).content, ScalesContent))
    return found


@torch.no_grad()
def divergence(pair: Pair, delta: Delta, tokens: torch.Tensor) -> float:
    """Return how far the rebuilt model's predictions are from those of the fine-tune, as transformers computes them."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(pair[1], dtype=torch.float32)
    state = {name: tensor.float() for name, tensor in load_state_dict(delta, open_checkpoint(pair[0])).items()}
    ours = type(theirs).from_pretrained(None, config=theirs.config, state_dict=state)
    p, q = (model(input_ids=tokens).logits.log_softmax(-1) for model in (theirs, ours))
    return float(torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1).mean())


def test_no_method_gets_worse_or_larger_and_most_get_better(pair: Pair, tokens: torch.Tensor, tmp_path: Path) -> None:
    better = []
    for method in METHODS:
        store = Store(tmp_path / method)
        plain = compress(store, *pair, request(method))
        trained = compress(store, *pair, request(method, **TRAINING), tokens=tokens)
        assert trained.manifest.id != plain.manifest.id
        sizes = [[sum(file.size for file in block.files) for block in delta.blocks] for delta in (plain, trained)]
        assert sizes[0] == sizes[1], method
        assert trained.content.cr_projection == plain.content.cr_projection
        assert verify(store, trained.manifest.id).faults == ()
        told = content_of(trained)
        assert told.steps == 10
        assert told.trained <= told.untrained, method
        assert (told.matrices == 14) == (told.trained < told.untrained)
        if told.matrices:
            better.append(method)
            assert divergence(pair, trained, tokens) < divergence(pair, plain, tokens), method
    assert len(better) >= 6


@pytest.mark.parametrize("method", ["ecsq", "dare"])
def test_what_trained_codes_keep_is_measured_again(
    method: str, pair: Pair, tokens: torch.Tensor, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    plain, trained = (
        compress(store, *pair, request(method, 16, **options), tokens=tokens if options else None)
        for options in ({}, TRAINING)
    )
    assert content_of(trained).matrices
    kept, kept_before = (
        {name: entry.fidelity for block in delta.blocks for name, entry in block_content(block).tensors.items()}
        for delta in (trained, plain)
    )
    assert {name for name, one in kept.items() if one} == {name for name, one in kept_before.items() if one}
    assert kept != kept_before
    base, theirs = (load_file(folder / "model.safetensors") for folder in pair)
    ours = load_state_dict(trained, open_checkpoint(pair[0]))
    for name, measured in kept.items():
        if measured:
            wanted, found = (side[name].double() - base[name].double() for side in (theirs, ours))
            # The rebuilt weights are rounded to bfloat16, which is noise of some thousandths of these deltas.
            assert measured[0].gain == pytest.approx(float((wanted * found).sum() / (wanted**2).sum()), rel=0.02)


def test_norms_are_trained_too_where_it_is_asked_for(pair: Pair, tokens: torch.Tensor, tmp_path: Path) -> None:
    store = Store(tmp_path)
    plain, more = (
        compress(store, *pair, request("lowrank", **TRAINING, distil_norms=norms), tokens=tokens)
        for norms in (False, True)
    )
    assert content_of(more).matrices == 14 + 5
    assert content_of(more).trained < content_of(plain).trained
    assert more.content.projection_bytes == plain.content.projection_bytes
    changed = {block.content.name for block in more.blocks} if more.blocks else set()
    assert changed == {"model.layers.0", "model.layers.1", "outside"}
    assert len({block.id for block in (*plain.blocks, *more.blocks)}) == 6


def test_gains_that_are_no_better_leave_the_delta_as_it_is_and_that_is_said(
    pair: Pair, tokens: torch.Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)
    plain = compress(store, *pair, request("lowrank"))
    with caplog.at_level(logging.WARNING, "impart_core"):
        options = {**TRAINING, "distil_rate": 1e4}
        trained = compress(store, *pair, request("lowrank", **options), tokens=tokens)
    assert "Distillation found nothing that is better on held-out text" in caplog.text
    told = content_of(trained)
    assert (told.matrices, told.trained) == (0, told.untrained)
    assert [block.files for block in trained.blocks] == [block.files for block in plain.blocks]


@pytest.mark.parametrize("after", [0, 3])
def test_a_killed_training_goes_on_where_it_was(
    after: int, pair: Pair, tokens: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = request("ecsq", **TRAINING)
    wanted = compress(Store(tmp_path / "whole"), *pair, config, tokens=tokens)
    store, advanced, predicted = Store(tmp_path / "killed"), list[int](), list[int]()
    advance, predictions = Distillation.advance, distil.predictions

    def die(training: Distillation, state: Any) -> Any:
        if len(advanced) == after:
            raise KeyboardInterrupt
        advanced.append(state.step)
        return advance(training, state)

    with monkeypatch.context() as patched:
        patched.setattr(Distillation, "advance", die)
        with pytest.raises(KeyboardInterrupt):
            compress(store, *pair, config, tokens=tokens)
    before = {block.id for block in compress(store, *pair, request("ecsq")).blocks}
    assert before

    def count(training: Distillation, state: Any) -> Any:
        advanced.append(state.step)
        return advance(training, state)

    def count_predictions(*given: Any) -> Any:
        predicted.append(1)
        return predictions(*given)

    monkeypatch.setattr(Distillation, "advance", count)
    monkeypatch.setattr(distil, "predictions", count_predictions)
    found = compress(store, *pair, config, tokens=tokens)
    assert advanced == list(range(10))  # no step was taken twice
    assert predicted == []
    assert found.manifest.id == wanted.manifest.id
    assert [block.files for block in found.blocks] == [block.files for block in wanted.blocks]
    kinds = [store.manifest(made).content.kind for made in store.objects.names("artifacts")]
    assert (kinds.count("scales"), kinds.count("activations")) == (1, 0)  # states and predictions are gone


def test_what_a_model_holds_otherwise_is_left_to_the_method(tmp_path: Path, tokens: torch.Tensor) -> None:
    mixture = transformers.MixtralConfig(**{**LLAMA, "num_hidden_layers": 1}, num_local_experts=2)
    delta = compress(Store(tmp_path), *save_pair(tmp_path, mixture), request("bitdelta", **TRAINING), tokens=tokens)
    assert content_of(delta).matrices == 4  # of attention


def test_a_layer_that_keeps_its_weight_turned_is_trained_too(tmp_path: Path, tokens: torch.Tensor) -> None:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=4, n_positions=LENGTH, initializer_range=0.2
    )
    delta = compress(Store(tmp_path), *save_pair(tmp_path, config), request("lowrank", **TRAINING), tokens=tokens)
    told = content_of(delta)
    assert told.matrices == 4
    assert told.trained < told.untrained


def test_the_plan_tells_the_memory(pair: Pair) -> None:
    sides = open_checkpoint(pair[0]), open_checkpoint(pair[1])
    assert make_plan(*sides, request("dare")).distil_bytes == 0
    few, many = (make_plan(*sides, request("lowrank", cr, distil=True)).distil_bytes for cr in (8, 2))
    assert sides[1].nbytes < few < many


def test_what_cannot_be_distilled_is_refused_in_a_sentence(pair: Pair, tokens: torch.Tensor, tmp_path: Path) -> None:
    def check(config: CompressConfig, text: CalibrationText | None = None) -> None:
        base, finetuned = map(str, pair)
        check_compress(
            CompressRequest(base=base, finetuned=finetuned, config=config, store=str(tmp_path), calibration=text)
        )

    with pytest.raises(ConfigError, match="Method 'dare' with distil=true needs calibration text"):
        check(request("dare", distil=True))
    with pytest.raises(ConfigError, match="no effect on method 'dare'"):
        check(request("dare"), CalibrationText(source="tinyzoo:math"))
    with pytest.raises(ConfigError, match="lossless has no options"):
        CompressConfig(method="lossless", options={"distil": True})
    for name in ("distil_steps", "distil_rate"):
        with pytest.raises(ConfigError, match=f"{name} is 0"):
            request("dare", distil=True, **{name: 0})
        with pytest.raises(ConfigError, match=f"{name}: without effect unless distil is true"):
            request("dare", **{name: 7})
    with pytest.raises(ConfigError, match="distil_norms: without effect"):
        request("dare", distil_norms=True)


@pytest.mark.parametrize("changed", [0.0, 0.25])
def test_a_fine_tune_whose_matrices_are_the_bases_has_nothing_to_distil(
    changed: float, pair: Pair, tokens: torch.Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(pair[0], dtype=torch.bfloat16)
    with torch.no_grad():
        model.model.norm.weight += changed
    model.save_pretrained(tmp_path / "finetuned")
    sides, store = (pair[0], tmp_path / "finetuned"), Store(tmp_path / "store")
    with caplog.at_level(logging.WARNING):
        trained = compress(store, *sides, request("dare", **TRAINING), tokens=tokens)
    assert "Distillation has nothing to train" in caplog.text
    assert verify(store, trained.manifest.id).faults == ()
    plain = compress(store, *sides, request("dare"))
    ours, theirs = (load_state_dict(delta, open_checkpoint(pair[0])) for delta in (trained, plain))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_model_that_holds_no_changed_matrix_as_the_checkpoint_does_is_refused(
    tmp_path: Path, tokens: torch.Tensor
) -> None:
    mixture = transformers.MixtralConfig(**{**LLAMA, "num_hidden_layers": 1}, num_local_experts=2)
    base, finetuned = save_pair(tmp_path, mixture)
    weights, changed = (load_file(side / "model.safetensors") for side in (base, finetuned))
    experts = {name: tensor for name, tensor in changed.items() if ".experts." in name}  # which the model stacks
    save_file({**weights, **experts}, finetuned / "model.safetensors", {"format": "pt"})
    with pytest.raises(CalibrationError, match="has no matrix of the delta under the name that the checkpoint gives"):
        compress(Store(tmp_path / "store"), base, finetuned, request("bitdelta", **TRAINING), tokens=tokens)


@pytest.mark.parametrize(
    ("method", "options", "length", "words"),
    [
        ("dare", TRAINING, 25, "of 25 tokens are asked for, and .* takes 24 at most"),
        ("impart-qt", {"solver": "support"}, 25, "of 25 tokens are asked for"),
        ("ecsq", {"metric": "kfac", "domain": "factors"}, 1, "have 1 token, and with these settings it takes 2"),
        ("dare", TRAINING, 1, "have 1 token, and with these settings it takes 2 at least"),
    ],
)
def test_sequences_of_a_length_that_cannot_be_used_are_refused_before_any_block(
    method: str, options: dict[str, Any], length: int, words: str, pair: Pair, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    with pytest.raises(CalibrationError, match=words):
        compress(store, *pair, request(method, **options), tokens=torch.ones(4, length, dtype=torch.int32))
    assert [store.manifest(made).content.kind for made in store.ids()] == ["calibration"]


def test_a_fine_tune_that_predicts_no_numbers_is_named(pair: Pair, tokens: torch.Tensor, tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(pair[1], dtype=torch.bfloat16)
    with torch.no_grad():
        model.lm_head.weight[:] = 3e38
    model.save_pretrained(tmp_path / "finetuned")
    with pytest.raises(CalibrationError, match=r"Of the text some predictions of .*finetuned, or of the model rebuilt"):
        compress(Store(tmp_path / "store"), pair[0], tmp_path / "finetuned", request("dare", **TRAINING), tokens=tokens)
