"""Golden ids and bytes: one artifact of every operation and method, as first written down.

They move with a version of an operation, a method or the format, never with a refactoring. The test speaks to the
program through its command alone and reads manifests as plain JSON, so that no move of code can touch it.

`vectors/golden/` holds two checkpoints whose deltas are sums of few exact numbers, the factors of these (their bits may
differ between processors, so that they are stored), and what is expected. `python -m tests.e2e.test_golden` writes down
anew what the program gives.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e

GOLDEN = Path(__file__).parents[1] / "vectors" / "golden"
PLAIN = ["--cr", "8"]
NEAREST = ["--option", "solver=nearest", "--option", "group_size=64"]
# Each method, and each of the ways in which blocks are coded, on the two small checkpoints.
COMPRESSIONS = {
    "impart": PLAIN,
    "impart-paper": [*PLAIN, "--accounting", "paper", "--option", "preprune=false", "--option", "rescale=false"],
    "impart-uniform": [*PLAIN, "--option", "allocation=uniform", "--seed", "3"],
    "impart-embeddings": [*PLAIN, "--embeddings", "auto", "--embeddings-cr", "4"],
    "dare": [*PLAIN, "--method", "dare"],
    "lowrank": [*PLAIN, "--method", "lowrank"],
    "magnitude": [*PLAIN, "--method", "magnitude"],
    "bitdelta": ["--cr", "12", "--method", "bitdelta"],
    "bitdelta-rows": ["--cr", "8", "--method", "bitdelta", "--option", "per_row=true"],
    "impart-qt": ["--cr", "12", "--method", "impart-qt", "--option", "ladder=3x8,2", *NEAREST],
    "delta-come": ["--cr", "12", "--method", "delta-come", "--option", "ladder=3x8,2", *NEAREST],
    "dare-qt": ["--cr", "12", "--method", "dare-qt", "--option", "bits=2", *NEAREST],
}
TEXT = ["--calibration", "tinyzoo:math", "--calibration-sequences", "2", "--calibration-length", "16"]
# Ids alone, on the tiny zoo: what comes out of a run model has other last bits on another processor.
CALIBRATED = {
    "calibrated": ["--cr", "32", "--method", "impart-qt", "--option", "ladder=2", *TEXT],
    "distilled": ["--cr", "32", "--method", "bitdelta", "--option", "distil=true", *TEXT],
}


def impart(*arguments: str, environment: dict[str, Any]) -> dict[str, Any]:
    """Run the installed command with `--json` and return what it prints."""
    command = [str(Path(sys.executable).parent / "impart"), *arguments, "--json"]
    given = {**os.environ, **{name: value for name, value in environment.items() if value is not None}}
    done = subprocess.run(command, capture_output=True, text=True, env=given, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert isinstance(printed, dict)
    return printed


def stored(store: Path) -> dict[str, dict[str, Any]]:
    """Return every manifest of a folder store by id."""
    return {path.parent.name: json.loads(path.read_bytes()) for path in sorted(store.glob("artifacts/*/manifest.json"))}


def ids_below(manifests: dict[str, dict[str, Any]], top: str) -> dict[str, str]:
    """Return the ids of a delta and of all that its recipes name, by kind and block."""
    ids = {"delta": top}
    for block in manifests[top]["parents"]:
        recipe = manifests[block]["recipe"]
        name = recipe["config"]["block"]
        ids[f"block {name}"] = block
        inputs = {role: value for role, value in recipe["inputs"].items() if isinstance(value, str)}
        ids |= {f"{role} of {name}": value for role, value in inputs.items()}
    return ids


def files_of(manifests: dict[str, dict[str, Any]], top: str) -> dict[str, str]:
    """Return the SHA-256 of the codes of each block of a delta."""
    blocks = [manifests[block] for block in manifests[top]["parents"]]
    return {block["content"]["name"]: entry["sha256"] for block in blocks for entry in block["files"]}


def run_all(store: Path, environment: dict[str, Any]) -> dict[str, Any]:
    """Run every request against a store and return ids and digests by request."""
    base, finetuned = str(GOLDEN / "base"), str(GOLDEN / "finetuned")
    found: dict[str, Any] = {}
    for name, flags in COMPRESSIONS.items():
        report = impart("compress", base, finetuned, *flags, "--store", str(store), environment=environment)
        made, top = stored(store), report["artifact"]
        found[name] = {"ids": ids_below(made, top), "files": files_of(made, top)}
        found[name]["decompositions"] = report["decompositions"]
    zoo = {side: impart("tinyzoo", "path", side, environment=environment)["path"] for side in ("base", "math")}
    for name, flags in CALIBRATED.items():
        report = impart("compress", *zoo.values(), *flags, "--store", str(store), environment=environment)
        found[name] = {"ids": ids_below(stored(store), report["artifact"])}
    arguments = ["evaluate", zoo["math"], "--tasks", "tinyzoo_math", "--limit", "2", "--store", str(store)]
    (result,) = impart(*arguments, environment=environment)["results"]
    recipe = stored(store)[result["id"]]["recipe"]
    found["evaluation"] = {"ids": {"evaluation": result["id"]}, "lm_eval": lm_eval_version()}
    found["evaluation"]["ids"]["without its definition"] = canonical_digest(
        {**recipe, "config": {**recipe["config"], "definition": ""}}
    )
    return found


def lm_eval_version() -> str:
    """Return the version of lm-eval, which is part of what a task is."""
    from importlib.metadata import version

    return version("lm_eval")


def canonical_digest(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON, worked out here once more."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture(scope="module")
def found(environment: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the program gives now."""
    store = tmp_path_factory.mktemp("golden") / "store"
    shutil.copytree(GOLDEN / "store", store)
    return run_all(store, environment)


EXPECTED: dict[str, Any] = json.loads((GOLDEN / "golden.json").read_text()) if (GOLDEN / "golden.json").exists() else {}


@pytest.mark.parametrize("name", [*COMPRESSIONS, *CALIBRATED])
def test_ids_are_as_they_were(name: str, found: dict[str, Any]) -> None:
    assert found[name]["ids"] == EXPECTED[name]["ids"]


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_codes_are_as_they_were(name: str, found: dict[str, Any]) -> None:
    assert found[name]["decompositions"] == 0  # what was stored long ago is read today
    assert found[name]["files"] == EXPECTED[name]["files"]


def test_the_id_of_an_evaluation_is_as_it_was(found: dict[str, Any]) -> None:
    ours, theirs = found["evaluation"], EXPECTED["evaluation"]
    assert ours["ids"]["without its definition"] == theirs["ids"]["without its definition"]
    if ours["lm_eval"] == theirs["lm_eval"]:
        assert ours["ids"] == theirs["ids"]


def test_every_operation_and_method_is_among_them(found: dict[str, Any]) -> None:
    made = {key.split()[0] for one in found.values() for key in one["ids"]}
    assert made >= {"delta", "block", "factors", "calibration", "activations", "scales", "evaluation"}


def write_checkpoints(folder: Path) -> None:
    """Write a base and a fine-tune in float32 whose values, and those of their delta, are few exact numbers."""
    import torch

    from tests.support import llama_shapes, save_checkpoint

    generator = torch.Generator().manual_seed(7)
    base, finetuned = {}, {}
    for name, shape in sorted(llama_shapes().items()):
        base[name] = torch.randint(-64, 65, shape, generator=generator).float() / 128
        delta = torch.randint(-2, 3, shape, generator=generator)
        for weight in (12, 6, 3) if len(shape) == 2 else ():
            left, right = (torch.randint(-1, 2, (side,), generator=generator) for side in shape)
            delta = delta + weight * torch.outer(left, right)
        finetuned[name] = base[name] + delta.float() / 1024
    save_checkpoint(folder / "base", base)
    save_checkpoint(folder / "finetuned", finetuned)


def leave_out_this_machine(path: Path) -> None:
    """Take places and names of this machine out of a manifest, and seal it again."""
    manifest = json.loads(path.read_bytes())
    manifest["provenance"] |= {"sources": {"base": "golden/base", "finetuned": "golden/finetuned"}, "user": "tests"}
    seal = canonical_digest({key: value for key, value in manifest.items() if key != "seal"})
    text = json.dumps({**manifest, "seal": seal}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    path.write_text(text)


def main() -> None:
    """Write down what the program gives."""
    shutil.rmtree(GOLDEN, ignore_errors=True)
    GOLDEN.mkdir(parents=True)
    write_checkpoints(GOLDEN)
    with tempfile.TemporaryDirectory() as scratch:
        store, environment = Path(scratch) / "store", {"IMPART_CACHE": f"{scratch}/cache"}
        environment["PREFECT_HOME"] = f"{scratch}/prefect"
        first = run_all(store, environment)
        kept = {
            one["ids"][key] for name in COMPRESSIONS for one in [first[name]] for key in one["ids"] if "factors" in key
        }
        for made in kept:
            shutil.copytree(store / "artifacts" / made, GOLDEN / "store" / "artifacts" / made)
            leave_out_this_machine(GOLDEN / "store" / "artifacts" / made / "manifest.json")
        again = Path(scratch) / "again"
        shutil.copytree(GOLDEN / "store", again)
        found = run_all(again, environment)
    (GOLDEN / "golden.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
