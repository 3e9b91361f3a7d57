"""Bad input: each is a sentence on standard error and exit code 2, before any work.

The commands run without a Prefect server configured: one that got as far as work would start its own, which
leaves a database in PREFECT_HOME.
"""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.support import (
    Environment,
    llama_shapes,
    make_pair,
    manifests,
    random_tensors,
    run_impart,
    run_json,
    save_checkpoint,
)

pytestmark = pytest.mark.e2e

Done = subprocess.CompletedProcess[str]
COMPRESS = "compress {base} {finetuned} --cr 4"

# What `llama_shapes` gives.
SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}

# What is typed, and what the sentence must hold. {names} stand for the folders of `places`.
CASES: dict[str, tuple[str, list[str]]] = {
    "missing folder": ("compress {base} {missing} --cr 4", ["{missing} does not exist"]),
    "a file as folder": ("compress {file} {finetuned} --cr 4", ["{file} is a file"]),
    "empty folder": ("compress {base} {empty} --cr 4", ["{empty} has no config.json", "nothing"]),
    "pickle": ("compress {base} {pickle} --cr 4", ["pytorch_model.bin", "pickle", "safetensors"]),
    "truncated": ("compress {base} {truncated} --cr 4", ["{truncated}/model.safetensors", "cut short"]),
    "garbage": ("compress {garbage} {finetuned} --cr 4", ["{garbage}/model.safetensors", "not a whole safetensors"]),
    "shard missing": ("compress {base} {sharded} --cr 4", ["model-00002-of", "missing"]),
    "other model": (
        "compress {base} {other} --cr 4",
        [
            "model_type",
            "architectures",
            "vocab_size",
            "embed_tokens.weight: shape [40, 32] in the base, [48, 64]",
            "mlp.shared_expert.up_proj.weight: only in the fine-tuned",
            "model.layers.*.mlp.up_proj.weight: shape",
            "(2 times)",
        ],
    ),
    "plan of another model": ("plan {base} {other} --cr 4", ["model_type", "vocab_size", "(2 times)"]),
    "CR below 1": ("compress {base} {finetuned} --cr 0.5", ["cr is 0.5", "1"]),
    "CR is no number": ("compress {base} {finetuned} --cr nan", ["cr is nan", "finite"]),
    "CR is a word": ("compress {base} {finetuned} --cr high", ["--cr", "number"]),
    "CR too high": ("compress {base} {finetuned} --cr 500", ["CR 500 is too high", "highest possible", "k_proj"]),
    "paper's CR too high": (
        "compress {base} {finetuned} --cr 500 --accounting paper",
        ["CR 500 is too high", "highest possible", "lower beta"],
    ),
    "beta against CR": (
        "compress {base} {finetuned} --cr 1 --option beta=0.9",
        ["beta 0.9 and CR 1 cannot go together", "Lower beta to at most 0.5", "raise CR to at least 5"],
    ),
    "two settings wrong": (COMPRESS + " --option beta=1.5 --seed -3", ["beta is 1.5", "seed is -3"]),
    "method": (COMPRESS + " --method impat", ["Unknown method 'impat'", "Did you mean 'impart'?"]),
    "beta of another method": (
        COMPRESS + " --method dare --option beta=0.5",
        ["Method 'dare' has no option 'beta'; it has: distil,"],
    ),
    "c of another method": (
        "plan {base} {finetuned} --cr 4 --method lowrank --option c=1",
        ["'lowrank' has no option 'c'"],
    ),
    "option": (
        COMPRESS + " --option rescal=false",
        ["Method 'impart' has no option 'rescal'; it has: beta, c,", "Did you mean 'rescale'?"],
    ),
    "option's value": (
        "plan {base} {finetuned} --cr 4 --option allocation=unifrm",
        ["options.allocation is 'unifrm'; it must be 'importance', 'uniform' or 'prop", "Did you mean 'uniform'?"],
    ),
    "option that is no boolean": (COMPRESS + " --option rescale=perhaps", ["rescale is 'perhaps'", "true or false"]),
    "option without a value": (COMPRESS + " --option rescale", ["'rescale' is not KEY=VALUE", "rescale=false"]),
    "option twice": (COMPRESS + " --option beta=0.5 --option beta=0.4", ["Option 'beta' is given twice"]),
    "CR too high for a method": (
        "compress {base} {finetuned} --cr 500 --method magnitude",
        ["CR 500 is too high", "with method 'magnitude'", "Lower the CR."],
    ),
    "factors for a higher ratio": (
        "compress {base} {finetuned} --cr 4 --factors-for 64",
        ["factors_for 64 keeps too few singular triplets for CR 4", "Lower it to at most 4, or leave it out"],
    ),
    "factors for settings that need all": (
        "plan {base} {finetuned} --cr 8 --factors-for 8 --option beta=0.5",
        ["factors_for 8 cannot serve these settings of 'impart'", "Leave factors_for out", "beta of at least 0.6"],
    ),
    "factors for no ratio": (COMPRESS + " --factors-for 0.5", ["factors_for is 0.5"]),
    "embeddings": (
        COMPRESS + " --embeddings nope",
        ["Unknown policy for embeddings 'nope'", "keep", "auto", "lowrank"],
    ),
    "embeddings' ratio without effect": (
        COMPRESS + " --embeddings-cr 8",
        ["embeddings_cr is 8", "no effect", "set embeddings to auto or a method"],
    ),
    "embeddings' ratio too high": (
        COMPRESS + " --embeddings impart --embeddings-cr 5000",
        ["CR 5000 is too high to keep anything of 2 of 2 matrices", "Lower embeddings_cr."],
    ),
    "accounting": (COMPRESS + " --accounting byts", ["'byts'", "Did you mean 'bytes'?"]),
    "device": (COMPRESS + " --device gpu", ["Unknown device 'gpu'", "cuda"]),
    "flag": (COMPRESS + " --sed 3", ["--sed", "--seed"]),
    "no CR": ("compress {base} {finetuned}", ["No compression ratio is given", "--cr"]),
    "verb": ("comprss {base} {finetuned} --cr 4", ["comprss", "compress"]),
    "store below a file": (COMPRESS + " --store {file}/store", ["{file}/store", "Choose another place"]),
    "store is a file": (COMPRESS + " --store {file}", ["{file}", "Choose another place"]),
    "store takes no writes": (COMPRESS + " --store /proc/impart", ["/proc/impart", "Choose another place"]),
    "store does not answer": (COMPRESS + " --store http://127.0.0.1:9/store", ["http://127.0.0.1:9/store", "address"]),
    "store of no protocol": (COMPRESS + " --store nope://store", ["nope://store", "fsspec URL"]),
    "ls of a file": ("ls --store {file}", ["{file} is a file"]),
    "name": (COMPRESS + " --name ../tiny", ["'../tiny' cannot name an artifact", "wizardmath-13b@prod"]),
    "name like an id": (COMPRESS + " --name c0ffee", ["'c0ffee' cannot name an artifact", "hexadecimal"]),
    "workers": (COMPRESS + " --workers 0", ["workers is 0", "at least 1"]),
    "ref": (
        "reconstruct tinny --base {base} --out {out} --store {published}",
        ["Unknown artifact 'tinny'", "Did you mean 'tiny'?"],
    ),
    "ref in an empty store": ("verify tiny --store {empty}", ["no artifact 'tiny'", "{empty}"]),
    "store that is not there": ("ls --store {missing}", ["There is no store at {missing}", "no such folder"]),
    "one checkpoint as both": ("compress {base} {base} --cr 4", ["{base} is given as the base and as the fine-tuned"]),
    "quantised": ("plan {base} {quantised} --cr 4", ["{quantised} is quantised (gptq, 4 bits)", "quantised from"]),
    "incomplete": (
        "plan {base} {incomplete} --cr 4",
        [
            "{incomplete} does not hold all",
            "LlamaForCausalLM",
            "random values",
            "lm_head.weight: missing, the base has",
        ],
    ),
    "wrong base": (
        "reconstruct tiny --base {finetuned} --out {out} --store {published}",
        ["another base", "tensors differ", "Give the base"],
    ),
    "base of another shape": (
        "reconstruct tiny --base {other} --out {out} --store {published}",
        ["another base", "tensors differ"],
    ),
    "output folder in use": (
        "reconstruct tiny --base {base} --out {finetuned} --store {published}",
        ["{finetuned} already holds files", "--overwrite"],
    ),
    "output below a file": (
        "reconstruct tiny --base {base} --out {file}/out --store {published}",
        ["{file}/out", "Choose another folder"],
    ),
    "shard size": (
        "reconstruct tiny --base {base} --out {out} --max-shard-bytes 0 --store {published}",
        ["max_shard_bytes is 0", "at least 1"],
    ),
    "evaluation task": ("evaluate {finetuned} --tasks tinyzoo_mth", ["'tinyzoo_mth'", "Did you mean 'tinyzoo_math'"]),
    "no evaluation task": ("evaluate {finetuned} --tasks ,", ["No evaluation task was named", "tinyzoo_math"]),
    "split": ("evaluate {finetuned} --tasks tinyzoo_math --split tst", ["'tst'", "Did you mean 'test'?"]),
    "limit": ("evaluate {finetuned} --tasks tinyzoo_math --limit 0", ["limit is 0", "at least 1"]),
    "evaluated folder": ("evaluate {missing} --tasks tinyzoo_math", ["{missing} does not exist"]),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, environment: Environment) -> dict[str, str]:
    """The folders that the cases name; `published` is a store with the artifact `tiny` in it."""
    root = tmp_path_factory.mktemp("bad")
    base, finetuned = make_pair(root)
    weights = (finetuned / "model.safetensors").read_bytes()
    for name in ("empty", "pickle", "truncated", "garbage"):
        (root / name).mkdir()
        if name != "empty":
            (root / name / "config.json").write_bytes((base / "config.json").read_bytes())
    (root / "pickle" / "pytorch_model.bin").write_bytes(b"\x80\x04")
    (root / "truncated" / "model.safetensors").write_bytes(weights[:-100])
    (root / "garbage" / "model.safetensors").write_bytes(b"not what it is called")
    sharded = save_checkpoint(root / "sharded", random_tensors(llama_shapes()), max_shard_bytes=10_000)
    next(sharded.glob("model-00002-of-*")).unlink()
    (root / "file").write_bytes(b"")
    tensors = random_tensors(llama_shapes())
    packed = {**tensors, "model.layers.0.self_attn.q_proj.qweight": torch.zeros(4, 32, dtype=torch.int32)}
    save_checkpoint(root / "quantised", packed, {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    del tensors["lm_head.weight"]
    save_checkpoint(root / "incomplete", tensors, SIZES)
    _save_other_model(root / "other")
    run_json(
        "compress",
        str(base),
        str(finetuned),
        "--cr",
        "4",
        "--name",
        "tiny",
        "--store",
        str(root / "published"),
        environment=environment,
    )
    return {name: str(root / name) for name in [*(p.name for p in root.iterdir()), "missing", "out"]}


def _save_other_model(folder: Path) -> None:
    """Save a model that differs from the base in everything that headers and configurations tell."""
    tensors = random_tensors(llama_shapes(hidden=64, vocab=48))
    tensors["model.layers.0.mlp.shared_expert.up_proj.weight"] = torch.ones(64, 64)
    save_checkpoint(folder, tensors, {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 48})
    base = folder.parent / "base" / "config.json"
    base.write_text(json.dumps({**json.loads(base.read_text()), "vocab_size": 40}))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """An environment in which no server is configured and nothing was ever stored."""
    root = tmp_path_factory.mktemp("fresh")
    return {
        "PREFECT_API_URL": None,
        "PREFECT_HOME": str(root / "prefect"),
        "IMPART_STORE": str(root / "store"),
        "IMPART_CACHE": str(root / "cache"),
    }


@pytest.fixture(scope="module")
def outcomes(places: dict[str, str], fresh: dict[str, str | None]) -> Iterator[dict[str, "Future[Done]"]]:
    """Every case's command, started on as many workers as there are cores, while the tests come and go."""
    inherited = dict(os.environ)  # fixtures change this process's variables meanwhile
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        yield {
            case: pool.submit(run_impart, *typed.format(**places).split(), environment=fresh, inherited=inherited)
            for case, (typed, _) in CASES.items()
        }
        pool.shutdown(cancel_futures=True)


def assert_refused(done: Done, phrases: list[str]) -> None:
    """Check that a command said why it does nothing, and nothing else."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    for phrase in phrases:
        assert phrase in done.stderr


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_with_a_sentence(case: str, outcomes: dict[str, "Future[Done]"], places: dict[str, str]) -> None:
    assert_refused(outcomes[case].result(), [phrase.format(**places) for phrase in CASES[case][1]])


def test_nothing_was_started_and_nothing_published(
    outcomes: dict[str, "Future[Done]"], fresh: dict[str, str], places: dict[str, str]
) -> None:
    for outcome in outcomes.values():
        outcome.result()
    assert not list(Path(fresh["PREFECT_HOME"]).glob("*.db*"))  # no server was started
    assert not list(Path(fresh["IMPART_STORE"]).rglob("*.*"))
    assert not Path(places["out"]).exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(places: dict[str, str], fresh: dict[str, str | None]) -> None:
    typed = (COMPRESS + " --device cuda").format(**places).split()
    assert_refused(run_impart(*typed, environment=fresh), ["no CUDA device", "--device cpu"])


def test_a_server_that_is_configured_but_down(places: dict[str, str], fresh: dict[str, str | None]) -> None:
    down = {**fresh, "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    done = run_impart(*COMPRESS.format(**places).split(), environment=down)
    assert_refused(done, ["Prefect server at http://127.0.0.1:9/api does not answer", "PREFECT_API_URL"])


def test_weights_that_are_no_numbers_are_refused_when_they_are_read(
    places: dict[str, str], environment: Environment, tmp_path: Path
) -> None:
    name = "model.layers.1.self_attn.v_proj.weight"
    broken = random_tensors(llama_shapes())
    broken[name][3, 5] = float("nan")
    save_checkpoint(tmp_path / "broken", broken)
    typed = ["compress", places["base"], str(tmp_path / "broken"), "--cr", "4", "--store", str(tmp_path / "store")]
    done = run_impart(*typed, environment=environment)
    assert_refused(done, [f"{name!r} of the fine-tuned checkpoint holds NaN or infinity", "re-export"])
    kinds = {manifest["content"]["kind"] for manifest in manifests(tmp_path / "store").values()}
    assert "delta" not in kinds


def test_an_error_is_one_object_with_json(places: dict[str, str], fresh: dict[str, str | None]) -> None:
    for typed, kind in (
        ("plan {base} {missing} --cr 4", "NoFolderError"),
        ("plan {base} --cr 4", "MissingParameter"),
    ):
        done = run_impart(*typed.format(**places).split(), "--json", environment=fresh)
        assert done.returncode == 2
        assert json.loads(done.stdout)["error"]["type"] == kind
        assert json.loads(done.stdout)["error"]["message"] in done.stderr.replace("\n", " ")


def test_what_should_be_known_is_a_warning_and_among_the_notes(places: dict[str, str], fresh: Environment) -> None:
    typed = ["plan", places["base"], places["finetuned"], "--cr", "4", "--json"]
    done = run_impart(*typed, environment=fresh)
    assert done.returncode == 0
    (note,) = json.loads(done.stdout)["notes"]
    assert f"It was not checked that {places['finetuned']} holds all" in note
    assert f"warning: {note}" in done.stderr


def test_the_highest_ratio_that_is_named_works(
    outcomes: dict[str, "Future[Done]"], places: dict[str, str], environment: Environment, tmp_path: Path
) -> None:
    named = re.search(r"highest possible CR .* is ([\d.]+)\. ", outcomes["CR too high"].result().stderr)
    assert named
    arguments = [places["base"], places["finetuned"], "--cr", named[1], "--store", str(tmp_path)]
    report = run_json("compress", *arguments, environment=environment)
    assert report["cr_projection"] >= float(named[1])
