"""Gains are trained until a model predicts what it should, and kept only where held-out text says so."""

import math
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from impart_core.base.errors import CalibrationError
from impart_core.calibrate import logits
from impart_core.calibrate.distil import Distillation, Schedule, State, Trainable, ends_of_segments
from impart_core.calibrate.logits import check_tokens, divergence, load_causal_model, predictions
from impart_core.checkpoint.index import open_checkpoint
from impart_core.checkpoint.reader import read_tensor
from impart_core.methods.terms import Terms
from tests.pretend_device import PRETEND

transformers = pytest.importorskip("transformers")

LENGTH, VOCABULARY = 24, 40
CPU = torch.device("cpu")
Q, DOWN = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"
WANTED = {Q: 1.5, DOWN: 0.75}  # gains that make the model the one whose predictions are to be met


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small Llama in bfloat16."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        initializer_range=0.2,
    )
    path = tmp_path_factory.mktemp("llama")
    transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(VOCABULARY, (24, LENGTH), generator=torch.Generator().manual_seed(1))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: read_tensor(info) for name, info in open_checkpoint(folder).tensors.items()}


def delta_of(name: str, folder: Path) -> torch.Tensor:
    shape = weights_of(folder)[name].shape
    return (0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(len(name)))).bfloat16().float()


def distillation(folder: Path, tokens: torch.Tensor, steps: int = 40, rate: float = 0.05, **more: Any) -> Distillation:
    """Return the training of two matrices' gains against the model that has those that are wanted."""
    device, checkpoint, weights = more.get("device", CPU), open_checkpoint(folder), weights_of(folder)
    deltas = {name: delta_of(name, folder) for name in WANTED}
    target = weights | {name: weights[name].float() + gain * deltas[name] for name, gain in WANTED.items()}
    wanted = torch.cat(list(predictions(load_causal_model(checkpoint, target, CPU), tokens)))
    rebuilt = weights | {name: (weights[name].float() + delta).bfloat16() for name, delta in deltas.items()}

    def rounded(name: str, gains: torch.Tensor) -> Terms:
        return Terms(deltas[name] * more.get("round", lambda gain: gain)(float(gains)))

    trainables = {
        name: partial(Trainable, weights[name], torch.bfloat16, Terms(delta), partial(rounded, name))
        for name, delta in deltas.items()
    }
    model = load_causal_model(checkpoint, rebuilt, device)
    return Distillation(model, trainables, tokens, wanted, Schedule(steps, rate, more.get("seed", 0)))


def trained(training: Distillation, steps: int = 40) -> State:
    state = training.begin()
    while state.step < steps:
        state = training.advance(state)
    return state


def same(one: State, other: State) -> bool:
    return all(
        torch.equal(value, getattr(other, name)) if isinstance(value, torch.Tensor) else value == getattr(other, name)
        for name, value in vars(one).items()
    )


def test_gains_become_those_of_the_model_whose_predictions_are_to_be_met(folder: Path, tokens: torch.Tensor) -> None:
    training = distillation(folder, tokens)
    state = trained(training)
    gains, error = training.result(state)
    assert {name: float(gain) for name, gain in gains.items()} == pytest.approx(WANTED, abs=0.1)  # stored in bfloat16
    assert error == pytest.approx(state.least)
    assert error < 0.05 * state.untrained


def test_equal_trainings_give_equal_gains_and_another_seed_other_ones(folder: Path, tokens: torch.Tensor) -> None:
    one, again, other = (trained(distillation(folder, tokens, 8, seed=seed), 8) for seed in (0, 0, 1))
    assert same(one, again)
    assert not torch.equal(one.gains, other.gains)


def test_a_training_that_goes_on_from_any_of_its_states_ends_the_same(folder: Path, tokens: torch.Tensor) -> None:
    first, wanted = distillation(folder, tokens, 8), trained(distillation(folder, tokens, 8), 8)
    state = first.begin()
    while state.step < 8:
        other = distillation(folder, tokens, 8)
        kept = replace(state)
        found = state
        while found.step < 8:
            found = other.advance(found)
        assert same(found, wanted)
        assert same(state, kept)
        state = first.advance(state)


@pytest.mark.parametrize("steps", [1, 4, 10, 25, 200])
def test_a_training_has_ten_segments_or_one_for_each_step(steps: int) -> None:
    ends = ends_of_segments(steps)
    assert ends == sorted(set(ends))
    assert (len(ends), ends[-1]) == (min(10, steps), steps)
    assert max(b - a for a, b in zip([0, *ends], ends, strict=False)) == math.ceil(steps / 10)


def test_gains_that_get_worse_are_not_taken(folder: Path, tokens: torch.Tensor) -> None:
    training = distillation(folder, tokens, 4, rate=1e4)
    state = trained(training, 4)
    assert state.best_step == 0
    assert training.result(state) == ({}, state.untrained)
    assert state.untrained > 0


def test_gains_that_rounding_takes_back_are_not_taken(folder: Path, tokens: torch.Tensor) -> None:
    training = distillation(folder, tokens, round=lambda gain: 10.0)
    state = trained(training)
    assert state.best_step > 0
    assert training.result(state) == ({}, state.untrained)


def test_a_tensor_that_the_model_holds_otherwise_is_left_alone(folder: Path, tokens: torch.Tensor) -> None:
    training = distillation(folder, tokens, 4)
    weights = weights_of(folder)
    model = load_causal_model(open_checkpoint(folder), weights, CPU)
    as_it_is = partial(Trainable, weights[Q], torch.bfloat16, Terms(weights[Q].float()), Terms)
    named = {"model.layers.0.nonesuch.weight": as_it_is}
    turned = {Q: partial(Trainable, weights[Q].T, torch.bfloat16, Terms(weights[Q].T.float()), Terms)}
    nothing = {Q: partial(Trainable, weights[Q], torch.bfloat16, Terms(torch.zeros(32, 32)), Terms)}
    wanted = torch.cat(list(predictions(model, tokens)))
    for trainables in (named, turned, nothing):
        assert Distillation(model, trainables, tokens, wanted, Schedule(4, 0.1, 0)).count == 0
    assert training.count == 2


def test_one_tensor_at_a_time_is_held_beside_the_model(folder: Path, tokens: torch.Tensor) -> None:
    weights, held, most = weights_of(folder), weakref.WeakSet[Trainable](), list[int]()

    def make(name: str) -> Trainable:
        most.append(len(held))
        found = Trainable(weights[name], torch.bfloat16, Terms(torch.ones_like(weights[name].float())), Terms)
        held.add(found)
        return found

    model = load_causal_model(open_checkpoint(folder), weights, CPU)
    wanted = torch.zeros(*tokens.shape, 2, VOCABULARY)
    Distillation(model, {name: partial(make, name) for name in WANTED}, tokens, wanted, Schedule(4, 0.1, 0))
    assert most == [0, 0]
    assert not held


def test_one_sequence_is_trained_on_and_held_out_at_once(folder: Path, tokens: torch.Tensor) -> None:
    training = distillation(folder, tokens[:1])
    state = trained(training)
    assert state.least < 0.1 * state.untrained


def test_a_device_gives_the_same_gains(folder: Path, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    here = trained(distillation(folder, tokens, 4), 4)
    # The engine of gradients would run a thread for the device, in which Python code cannot end; nor can layers be run
    # again while it works backwards.
    monkeypatch.setattr(logits, "_run_layers_again", lambda model: None)
    with torch.autograd.set_multithreading_enabled(False):
        there = trained(distillation(folder, tokens, 4, device=PRETEND), 4)
    assert there.gains.device == CPU
    torch.testing.assert_close(there.gains, here.gains, rtol=1e-4, atol=0)  # gradients are summed in another order


# Predictions.


def test_logits_are_those_of_float32_whatever_the_weights_are_stored_as(folder: Path, tokens: torch.Tensor) -> None:
    weights = weights_of(folder)
    model = load_causal_model(open_checkpoint(folder), weights, CPU)
    stored = {name: parameter for name, parameter in model.named_parameters() if "original" in name}
    assert {parameter.dtype for parameter in stored.values()} == {torch.bfloat16}
    whole = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = whole(input_ids=tokens).logits
    torch.testing.assert_close(logits.logits_of(model, tokens), expected, rtol=1e-5, atol=1e-5)


def test_the_divergence_of_whole_predictions_is_that_of_kullback_and_leibler(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (2 * torch.randn(2, 3, 50, generator=generator) for _ in range(2))
    log_p, log_q = theirs.log_softmax(-1), ours.log_softmax(-1)
    expected = float(torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1).mean())
    found = []
    for kept in (50, 10):  # all others are taken together, which tells less
        likeliest = log_p.topk(kept)
        found.append(float(divergence(ours, torch.stack([likeliest.values, likeliest.indices.float()], dim=-2)).mean()))
    assert found[0] == pytest.approx(expected, rel=1e-5)
    assert 0.5 * expected < found[1] < expected


def test_of_a_large_vocabulary_the_likeliest_tokens_are_kept(
    folder: Path, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_causal_model(open_checkpoint(folder), weights_of(folder), CPU)
    whole = torch.cat(list(predictions(model, tokens)))
    monkeypatch.setattr(logits, "LIKELIEST", 5)
    few = torch.cat(list(predictions(model, tokens)))
    assert (whole.shape, few.shape) == ((24, LENGTH, 2, VOCABULARY), (24, LENGTH, 2, 5))
    assert torch.equal(few, whole[..., :5])
    torch.testing.assert_close(whole[..., 0, :].exp().sum(-1), torch.ones(24, LENGTH))
    assert float(divergence(logits.logits_of(model, tokens), few).abs().max()) == pytest.approx(0, abs=1e-4)


def test_a_token_is_foreseen_with_the_probability_that_was_predicted_before_it(
    folder: Path, tokens: torch.Tensor
) -> None:
    model = load_causal_model(open_checkpoint(folder), weights_of(folder), CPU)
    wanted = torch.cat(list(predictions(model, tokens)))
    found = logits.foreseen(wanted, tokens)
    expected = logits.logits_of(model, tokens).softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    torch.testing.assert_close(found[:, :-1], expected)
    assert not found[:, -1].any()
    assert not logits.foreseen(wanted[..., :1], tokens)[wanted[..., 1, 0].long() != tokens.roll(-1, 1)].any()


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
    given: torch.Tensor, sentence: str, folder: Path
) -> None:
    model = load_causal_model(open_checkpoint(folder), weights_of(folder), CPU)
    with pytest.raises(CalibrationError, match=sentence):
        check_tokens(given, model)


def test_a_model_that_cannot_be_loaded_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nonesuch"}')
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(CalibrationError, match="has the model_type 'nonesuch'"):
        load_causal_model(open_checkpoint(tmp_path), weights_of(folder), CPU)
