"""`import impart_core as impart`: each verb in one line, and our sentences for ordinary misuse."""

import itertools
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import impart_core as impart
from impart_core import tinyzoo
from impart_core.base.errors import (
    ArtifactNotFoundError,
    CalibrationError,
    ConfigError,
    ImpartError,
    UnknownNameError,
    WrongBaseError,
)

BASE, MATH = tinyzoo.path("base"), tinyzoo.path("math")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("library") / "store")


@pytest.fixture(scope="module")
def delta(store: str) -> impart.Delta:
    return impart.compress(BASE, MATH, 16, store=store, name="math@cr16", workers=1)


def test_every_public_name_is_there_and_documented() -> None:
    assert set(impart.__all__) <= set(dir(impart))
    for name in impart.__all__:
        assert getattr(impart, name).__doc__
    with pytest.raises(AttributeError, match="nothing"):
        impart.nothing  # noqa: B018


def test_a_delta_shows_itself_in_one_line(delta: impart.Delta) -> None:
    assert repr(delta).startswith(f"Delta({delta.id[:12]}, cr_projection=16.00, cr_model=")
    assert len(repr(delta)) < 100


def test_a_delta_is_opened_by_name_and_by_id(delta: impart.Delta, store: str) -> None:
    for ref in ("math@cr16", delta.id, delta.id[:8], delta):
        assert impart.open_delta(ref, store).manifest == delta.manifest
        assert impart.open_delta(ref, impart.Store(store)).blocks == delta.blocks


def test_progress_is_told(store: str) -> None:
    heard: list[tuple[Any, ...]] = []
    impart.compress(BASE, MATH, 16, store=store, seed=1, progress=lambda *event: heard.append(event))
    assert heard[0] == ("compress", 0, 4, "")
    assert heard[-1][:3] == ("compress", 4, 4)


def test_what_is_loaded_is_what_is_rebuilt(delta: impart.Delta, store: str, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    out = impart.reconstruct(delta, BASE, tmp_path / "out", progress=lambda *step: steps.append(step))
    rebuilt = load_file(out / "model.safetensors")
    assert steps[-1] == (len(rebuilt), len(rebuilt))
    state = impart.load_state_dict("math@cr16", store=store)  # the base is where it lay
    assert set(state) == set(rebuilt)
    assert all(torch.equal(state[name], rebuilt[name]) for name in rebuilt)


@pytest.mark.slow
def test_a_loaded_model_is_that_of_the_rebuilt_folder(delta: impart.Delta, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = impart.reconstruct(delta, BASE, tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()
    model = impart.load_model(delta, BASE, device="cpu")
    ours = model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not model.training


@pytest.mark.slow
def test_a_delta_is_quantised_with_tokens_at_hand_and_measured(delta: impart.Delta) -> None:
    tokens = torch.randint(3, 90, (2, 16), dtype=torch.int32)
    smaller = impart.quantize(delta, 64, options={"ladder": "2"}, calibration=tokens, name="math@q64")
    assert smaller.store.url == delta.store.url
    assert smaller.bytes < delta.bytes
    assert smaller.content.cr_projection is not None
    assert smaller.content.cr_projection >= 64
    measured = impart.evaluate(delta, "tinyzoo_math", base=BASE, limit=5)["tinyzoo_math"]
    assert measured.items == {"tinyzoo_math": 5}
    again = impart.evaluate("math@cr16", ["tinyzoo_math"], base=BASE, limit=5, store=delta.store)
    assert again["tinyzoo_math"].cached


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: impart.compress(BASE, MATH, 16, metod="dare"), ConfigError, "Did you mean 'method'"),  # type: ignore[call-arg]
        (lambda: impart.compress(BASE, MATH, 16, method="dar"), UnknownNameError, "Did you mean 'dare'"),
        (lambda: impart.compress(BASE, MATH, 0.5), ConfigError, "cr is 0.5"),
        (lambda: impart.compress(BASE, MATH, impart.CompressConfig(cr=4), seed=1), ConfigError, "Put all into it"),
        (lambda: impart.compress(BASE / "nowhere", MATH, 4), impart.ImpartError, "does not exist"),
        (lambda: impart.compress(None, MATH, 4), ConfigError, "None is no place of a checkpoint"),  # type: ignore[arg-type]
        (lambda: impart.compress(BASE, " ", 4), ConfigError, "' ' is no place of a checkpoint"),
        (lambda: impart.evaluate(7, "tinyzoo_math"), ConfigError, "7 is no place of a checkpoint"),  # type: ignore[arg-type]
        (lambda: impart.reconstruct("x", BASE, None), ConfigError, "out is None, a NoneType"),  # type: ignore[arg-type]
        (lambda: impart.compress(BASE, MATH, 16, workers=0), ConfigError, "workers is 0"),
        (
            lambda: impart.compress(BASE, MATH, 16, calibration=[[1, 2, 3]]),  # type: ignore[arg-type]
            ConfigError,
            r"calibration is \[\[1, 2, 3\]\], a list. Give .* a tensor of integers",
        ),
        (lambda: impart.open_delta(Path("math")), ConfigError, "Give its name or id"),  # type: ignore[arg-type]
        (lambda: impart.open_delta("nothing"), ArtifactNotFoundError, "There is no store at"),
        (lambda: impart.load_model("nothing"), ArtifactNotFoundError, "There is no store at"),
        (lambda: impart.Store("s3://me:secret@host/a"), impart.ImpartError, "carries a password"),
        (
            lambda: impart.METHODS.get("impart").encode(torch.ones(4, 4), impart.Coding(cr=2)),  # type: ignore[arg-type]
            ConfigError,
            "Projection.of",
        ),
        (lambda: impart.METHODS.get("impart").decode("codes", "w", (4, 4), 0), ConfigError, "codes by part"),  # type: ignore[arg-type]
        (lambda: impart.Projection.of(torch.ones(4), "w"), ConfigError, "a matrix"),
    ],
)
def test_misuse_gets_a_sentence(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (torch.rand(2, 16), "torch.float32"),
        (torch.ones(2, 16) > 0, "torch.bool"),
        (torch.arange(10), r"\[10\]"),
        (torch.zeros((0, 16), dtype=torch.long), r"\[0, 16\]"),
        (torch.full((2, 16), -1), "from 0 on"),
        (torch.full((2, 16), 10**6), "the model has 100 tokens"),
    ],
)
def test_what_are_no_token_ids_is_refused(tokens: torch.Tensor, words: str, delta: impart.Delta) -> None:
    before = len(delta.store.ids())
    with pytest.raises(CalibrationError, match=words):
        impart.quantize(delta, 64, options={"ladder": "2"}, calibration=tokens)
    assert len(delta.store.ids()) <= before + 1  # ids of another model's vocabulary are text all the same


def test_misuse_of_a_delta_gets_a_sentence(delta: impart.Delta, store: str) -> None:
    with pytest.raises(WrongBaseError, match="made against another base"):
        impart.load_state_dict(delta, MATH)
    with pytest.raises(ArtifactNotFoundError, match="is no artifact id"):
        impart.Store(store).manifest("math@cr16")


# Requests that cannot be carried out as they are, so that no wrong argument of them starts any work.
REQUESTS: dict[str, dict[str, Any]] = {
    "compress": {
        "base": BASE,
        "finetuned": MATH,
        "cr": 1e9,
        "method": "impart",
        "seed": 0,
        "options": {},
        "name": None,
    },
    "quantize": {"ref": "nothing", "cr": 64, "method": "impart-qt", "options": {}, "base": None},
    "reconstruct": {"ref": "nothing", "base": BASE, "out": "out"},
    "merge": {
        **{
            "models": [MATH],
            "method": "linear",
            "weights": 1.0,
            "base": BASE,
            "options": {},
            "out": None,
            "name": None,
        },
        **{"sparsify": None, "compress": None, "seed": 0, "workers": 1, "device": "cpu"},
    },
    "search": {"file": {"tasks": ["nothing"]}, "workers": 1, "device": "cpu"},
    "evaluate": {"model": MATH, "tasks": "nothing", "base": None, "options": {}},
    "open_delta": {"ref": "nothing"},
    "load_model": {"ref": "nothing", "base": BASE},
    "load_state_dict": {"ref": "nothing", "base": BASE},
}


@pytest.mark.parametrize("verb", REQUESTS)
def test_an_argument_of_another_kind_gets_a_sentence(verb: str, tmp_path: Path) -> None:
    odd = (None, 5, 0.5, b"x", object(), [None], [[1]], {1: 2}, float("nan"), "")
    for argument, value in itertools.product([*REQUESTS[verb], "store"], odd):
        with suppress(ImpartError):  # any other error fails the test
            getattr(impart, verb)(**{"store": tmp_path / "store", **REQUESTS[verb], argument: value})


def test_what_is_no_list_of_models_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match=r"models is None, a NoneType\. Give a list of models, a merge file"):
        impart.merge(None)  # type: ignore[arg-type]
