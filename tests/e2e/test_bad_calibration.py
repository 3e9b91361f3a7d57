"""Calibration that cannot be: each is one sentence on standard error and exit code 2, before any work."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from impart_core import tinyzoo
from tests.architectures import save_pair
from tests.e2e.here import impart
from tests.support import manifests, save_checkpoint

pytestmark = pytest.mark.e2e

BASE, MATH = (str(tinyzoo.path(name)) for name in ("base", "math"))
QT = "compress {zoo} --method impart-qt --cr 64"
SHORT = "--calibration-sequences 8 --calibration-length 64"
TEXT = f"--calibration tinyzoo:math {SHORT}"

# What is typed, and what the sentence must hold. {names} stand for what `places` makes.
CASES: dict[str, tuple[str, list[str]]] = {
    "no text": (QT, ["Method 'impart-qt' needs calibration text", "--calibration", "tinyzoo:math"]),
    "no text for another method": ("compress {zoo} --method dare-qt --cr 64", ["Method 'dare-qt' needs calibration"]),
    "no text to distil with": (
        "compress {zoo} --method bitdelta --cr 64 --option distil=true",
        ["Method 'bitdelta' with distil=true needs calibration text"],
    ),
    "text without effect": (
        f"compress {{zoo}} --method impart --cr 16 {TEXT}",
        ["no effect on method 'impart'", "Leave it out"],
    ),
    "text without effect on these settings": (f"{QT} --option solver=nearest {TEXT}", ["no effect", "'impart-qt'"]),
    "text without effect where nothing is distilled": (
        f"compress {{zoo}} --method bitdelta --cr 64 {TEXT}",
        ["no effect on method 'bitdelta'"],
    ),
    "no such file": (f"{QT} --calibration {{missing}}", ["There is no calibration file {missing}", ".jsonl"]),
    "a folder": (f"{QT} --calibration {{empty}}", ["{empty} is no file"]),
    "an empty file": (f"{QT} --calibration {{blank}}", ["{blank} is empty"]),
    "no form that is known": (f"{QT} --calibration s3x:math", ["'s3x:math' has a form that is not known"]),
    "no such task": (f"{QT} --calibration tinyzoo:mth", ["'mth'", "Did you mean 'math'?"]),
    "no data set of the Hub": (f"{QT} --calibration hub:math", ["'hub:math' names no data set of the Hub"]),
    "longer than the model takes": (
        f"{QT} --calibration tinyzoo:math --calibration-length 257",
        ["sequences of 257 tokens", MATH, "takes 256 at most", "shorter"],
    ),
    "no sequences": (
        f"{QT} --calibration tinyzoo:math --calibration-sequences 0",
        ["sequences is 0", "at least 1"],
    ),
    "sequences of one token": (f"{QT} --calibration tinyzoo:math --calibration-length 1", ["length is 1", "2"]),
    "no tokenizer": (
        f"compress {{base}} {{mute}} --method impart-qt --cr 64 {TEXT}",
        ["{mute} has no tokenizer files", "save_pretrained"],
    ),
    "more vectors than the rank": (
        f"{QT} --option ladder=8x200,3x100,2 {TEXT}",
        ["asks for 300 vectors", "has rank 256", "8x200,3x56,2"],
    ),
    "a ladder without a rest": (f"{QT} --option ladder=8x2,3x32 {TEXT}", ["8x2,3x32", "no group for the rest"]),
    "a ladder of other bits": (f"{QT} --option ladder=5x2,2 {TEXT}", ["a group of 5 bits", "they can be"]),
    "a ladder that is none": (
        f"{QT} --option ladder=eight {TEXT}",
        ["'eight'", "not bits x vectors", "like 8x2,3x32,2"],
    ),
    "a group of no vectors": (f"{QT} --option ladder=8x0,2 {TEXT}", ["a group of no vectors", "Leave it out"]),
    "the first pair is too much": (
        f"compress {{zoo}} --method impart-qt --cr 2000 {TEXT}",
        ["CR 2000 is too high", "'impart-qt'", "is 156.78", "Lower the CR"],
    ),
    "the first vectors are too much": (
        f"compress {{zoo}} --method delta-come --cr 2000 {TEXT}",
        ["CR 2000 is too high", "'delta-come'", "is 157.16"],
    ),
    "one entry is too much": (f"compress {{zoo}} --method dare-qt --cr 20000 {TEXT}", ["CR 20000 is too high"]),
    "the scales are too much": (
        "compress {zoo} --method bitdelta --cr 128 --option per_row=true",
        ["CR 128 is too high", "'bitdelta'", "set per_row to false"],
    ),
    "the scales to distil are too much": (
        f"compress {{zoo}} --method bitdelta --cr 128 --option per_row=true --option distil=true {TEXT}",
        ["CR 128 is too high", "set per_row to false"],
    ),
    "no decoder": (
        f"compress {{bert}} --method impart-qt --cr 32 --option ladder=3x4,2 {TEXT}",
        ["is a BertForMaskedLM", "only decoder-only causal language models can be calibrated", "needs no calibration"],
    ),
    "no decoder to distil": (
        f"compress {{bert}} --method bitdelta --cr 32 --option distil=true {TEXT}",
        ["is a BertForMaskedLM"],
    ),
    "layers that are not there": (
        f"compress {{shallow}} --method impart-qt --cr 64 {TEXT}",
        ["does not hold all that its configuration", "model.layers.", "If its config.json is wrong"],
    ),
    "a model that transformers does not know": (
        f"compress {{odd}} --method impart-qt --cr 64 {TEXT}",
        ["model_type 'llama9'", "needs no calibration"],
    ),
    "quantize no method": ("quantize {text} --cr 64 --method impart --store {store}", ["'impart' has no codes"]),
    "quantize signs": ("quantize {text} --cr 64 --method bitdelta --store {store}", ["Use one of dare-qt, delta-come"]),
    "quantize an unknown method": (
        "quantize {text} --cr 64 --method impart-q --store {store}",
        ["Did you mean 'impart-qt'?"],
    ),
    "quantize no delta": (
        f"quantize {{text}} --cr 64 {TEXT} --store {{store}}",
        ["is of kind calibration, not a compressed"],
    ),
    "quantize nothing": (f"quantize nothing --cr 64 {TEXT} --store {{store}}", ["nothing", "artifact"]),
    "quantize without text": ("quantize plain --cr 64 --store {store}", ["needs calibration text"]),
    "quantize too far": (f"quantize plain --cr 2000 {TEXT} --store {{store}}", ["CR 2000 is too high"]),
    "numbers of no text": (
        "quantize plain --cr 64 --calibration-sequences 8 --calibration-length 64 --store {store}",
        ["--calibration-sequences and --calibration-length is given, but no text", "Name it with --calibration"],
    ),
    "workers": ("quantize plain --cr 64 --workers 0 --store {store}", ["workers is 0"]),
}
# What only reading the text tells: the run begins, and nothing of the checkpoints is read.
WHEN_READ: dict[str, tuple[str, list[str]]] = {
    "shorter than one sequence": (
        f"{QT} --calibration {{brief}} --calibration-length 64",
        ["{brief} has", "one sequence takes 64", "Give more text or a smaller length"],
    ),
    "another model's tokenizer": (
        f"compress {{small}} --method impart-qt --cr 64 {TEXT}",
        ["has the token id", "the model has 50 tokens", "take the model's own"],
    ),
    "a tokenizer that cannot be loaded": (
        f"compress {{broken}} --method impart-qt --cr 64 {TEXT}",
        ["The tokenizer of", "cannot be loaded", "save_pretrained"],
    ),
    "no text in the field": (
        f"{QT} --calibration {{fieldless}} {SHORT}",
        ["Line 1 of {fieldless} has no text in a field"],
    ),
    "no text at all": (f"{QT} --calibration {{binary}} {SHORT}", ["{binary} cannot be read"]),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, prefect_api: str) -> dict[str, str]:
    """What the cases name: files, folders, pairs of folders, and a store with the delta `plain` and a text in it."""
    root = tmp_path_factory.mktemp("bad")
    (root / "empty").mkdir()
    for name, content in {"blank": "", "brief": "1 + 1 = 2\n"}.items():
        (root / name).write_text(content)
    (root / "fieldless.jsonl").write_text('{"words": "1 + 1"}\n')
    (root / "binary").write_bytes(b"\xff\xfe\xfd" * 100)
    mute = shutil.copytree(MATH, root / "mute")
    for path in mute.glob("tokenizer*"):
        path.unlink()
    pairs = {"zoo": f"{BASE} {MATH}", "bert": " ".join(map(str, save_pair(root / "bert", "bert")))}
    for side in ("base", "finetuned"):
        for path in Path(MATH).glob("tokenizer*"):  # a text can be read, so that the model is what is wrong
            shutil.copy(path, root / "bert" / side)
    pairs["shallow"] = changed(root / "shallow", {"num_hidden_layers": 4})
    pairs["odd"] = changed(root / "odd", {"model_type": "llama9"})
    pairs["small"] = changed(root / "small", {"vocab_size": 50}, rows=50)
    pairs["broken"] = changed(root / "broken", {})
    (root / "broken" / "math" / "tokenizer.json").write_text('{"model": 1}')
    store = ["--store", str(root / "store")]
    for arguments in (
        ["compress", BASE, MATH, "--cr", "64", "--method", "dare", "--name", "plain", *store],
        ["compress", BASE, MATH, "--cr", "512", "--method", "dare-qt", *TEXT.split(), *store],
    ):
        code, _, err = impart(*arguments)
        assert code == 0, err
    (text,) = manifests(root / "store", "calibration")
    names = ("missing", "empty", "blank", "brief", "binary", "mute", "store")
    files = {name: str(root / name) for name in names}
    return {**files, **pairs, "base": BASE, "text": text, "fieldless": str(root / "fieldless.jsonl")}


def changed(folder: Path, settings: dict[str, object], rows: int | None = None) -> str:
    """Save the zoo's base and its math model with other settings, or fewer tokens; return both folders."""
    for source in (BASE, MATH):
        out = shutil.copytree(source, folder / Path(source).name)
        config = json.loads((out / "config.json").read_text())
        tensors = load((out / "model.safetensors").read_bytes())
        if rows:
            tensors = {name: tensor[:rows] if len(tensor) == 100 else tensor for name, tensor in tensors.items()}
        save_checkpoint(out, tensors, {**config, **settings})
    return f"{folder / 'base'} {folder / 'math'}"


def assert_refused(arguments: list[str], phrases: list[str]) -> None:
    """Check that a command said in one sentence why it does nothing, and nothing else."""
    code, out, err = impart(*arguments)
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ")
    assert err.count("\n") == 1 or "does not hold all" in err  # a list of what is missing
    assert "Traceback" not in err
    for phrase in phrases:
        assert phrase in err


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_before_any_work(
    case: str, places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_late(*_: object) -> None:
        raise AssertionError("it got as far as a server")

    monkeypatch.setattr("impart_flows.embedded.prefect_server", too_late)
    monkeypatch.setenv("IMPART_STORE", str(tmp_path / "store"))
    typed, phrases = CASES[case]
    before = sorted(Path(places["store"]).rglob("*"))
    assert_refused(typed.format(**places).split(), [phrase.format(**places) for phrase in phrases])
    assert not list((tmp_path / "store").rglob("*.*"))
    assert sorted(Path(places["store"]).rglob("*")) == before


@pytest.mark.parametrize("case", WHEN_READ)
def test_a_text_that_cannot_be_used_ends_the_run_before_a_checkpoint_is_read(
    case: str, places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_late(*_: object) -> None:
        raise AssertionError("it got as far as the weights")

    monkeypatch.setattr("impart_core.engine.compress.digest_checkpoint", too_late)
    monkeypatch.setenv("IMPART_STORE", str(tmp_path / "store"))
    typed, phrases = WHEN_READ[case]
    assert_refused(typed.format(**places).split(), [phrase.format(**places) for phrase in phrases])
    assert manifests(tmp_path / "store") == {}
    assert not list((tmp_path / "store").glob("pins/*"))


def test_what_calibration_makes_of_a_broken_model_is_told(places: dict[str, str], tmp_path: Path) -> None:
    broken = shutil.copytree(MATH, tmp_path / "broken")
    tensors = load((broken / "model.safetensors").read_bytes())
    tensors["model.layers.0.input_layernorm.weight"][3] = torch.nan
    save_checkpoint(broken, tensors, json.loads((broken / "config.json").read_text()))
    store = tmp_path / "store"
    asked = ["compress", BASE, str(broken), "--method", "dare-qt", "--cr", "64", *TEXT.split(), "--store", str(store)]
    assert_refused(asked, ["input_layernorm.weight", "NaN or infinity"])
    assert "delta" not in {made["content"]["kind"] for made in manifests(store).values()}
