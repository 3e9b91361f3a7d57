"""Golden ids and bytes: one artifact of every operation and method, as first written down.

They move with a version of an operation, a method or the format, never with a refactoring. The test speaks to the
program through its command alone and reads manifests as plain JSON, so that no move of code can touch it.

`vectors/golden/` holds two checkpoints whose deltas are sums of few exact numbers, the factors of these (their bits may
differ between processors, so that they are stored), and what is expected. `python -m tests.e2e.test_golden` writes down
anew what the program gives.
"""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.support import run_json

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
    "ecsq": ["--cr", "8", "--method", "ecsq", "--option", "domain=entries"],
    "dare-qt": ["--cr", "12", "--method", "dare-qt", "--option", "bits=2", *NEAREST],
    "lossless": ["--method", "lossless"],
}
# Residuals, and which of these they are against: one that has entries exactly, so that projections are residuals, too.
RESIDUALS = {"residual": "magnitude"}
TEXT = ["--calibration", "tinyzoo:math", "--calibration-sequences", "2", "--calibration-length", "16"]
# Ids alone, on the tiny zoo: what comes out of a run model has other last bits on another processor.
CALIBRATED = {
    "calibrated": ["--cr", "32", "--method", "impart-qt", "--option", "ladder=2", *TEXT],
    "by-sensitivity": ["--cr", "32", "--method", "ecsq", "--option", "metric=kfac", *TEXT],
    "distilled": ["--cr", "32", "--method", "bitdelta", "--option", "distil=true", *TEXT],
}
# Merges of the fine-tune and of a delta of it, by sums that are exact in float32 on any processor.
MERGES: dict[str, dict[str, Any]] = {
    "merge-arithmetic": {"merge_method": "task_arithmetic", "parameters": {"weight": 0.5, "lambda": [0.5, 1]}},
    "merge-ties": {"merge_method": "ties", "parameters": {"weight": 0.5, "density": 0.5, "normalize": False}},
    "merge-dare": {
        "merge_method": "dare_linear",
        "parameters": {"weight": 0.5, "density": 0.5, "rescale": "expectation"},
        "impart": {"seed": 3},
    },
}


def stored(store: Path) -> dict[str, dict[str, Any]]:
    """Return every manifest of a folder store by id."""
    return {path.parent.name: json.loads(path.read_bytes()) for path in sorted(store.glob("artifacts/*/manifest.json"))}


def ids_below(manifests: dict[str, dict[str, Any]], top: str) -> dict[str, str]:
    """Return the ids of a delta and of all that its recipes name, by kind and block."""
    ids = {"delta": top}
    for name, block in blocks_of(manifests, top).items():
        recipe = manifests[block]["recipe"]
        ids[f"block {name}"] = block
        inputs = {role: value for role, value in recipe["inputs"].items() if isinstance(value, str)}
        ids |= {f"{role} of {name}": value for role, value in inputs.items()}
    return ids


def files_of(manifests: dict[str, dict[str, Any]], top: str) -> dict[str, str]:
    """Return the SHA-256 of the codes of each block of a delta."""
    blocks = blocks_of(manifests, top).items()
    return {name: entry["sha256"] for name, block in blocks for entry in manifests[block]["files"]}


def blocks_of(manifests: dict[str, dict[str, Any]], top: str) -> dict[str, str]:
    """Return the ids of a delta's own blocks by name."""
    return {block["name"]: block["id"] for block in manifests[top]["content"]["blocks"]}


def run_all(store: Path, environment: dict[str, Any]) -> dict[str, Any]:
    """Run every request against a store and return ids and digests by request."""
    base, finetuned = str(GOLDEN / "base"), str(GOLDEN / "finetuned")
    found: dict[str, Any] = {}
    for name in (*COMPRESSIONS, *RESIDUALS):
        over = found[RESIDUALS[name]]["ids"]["delta"] if name in RESIDUALS else ""
        flags = ["--method", "lossless", "--over", over] if over else COMPRESSIONS[name]
        report = run_json("compress", base, finetuned, *flags, "--store", str(store), environment=environment)
        made, top = stored(store), report["artifact"]
        found[name] = {"ids": ids_below(made, top), "files": files_of(made, top)}
        found[name]["decompositions"] = report["decompositions"]
    zoo = {side: run_json("tinyzoo", "path", side, environment=environment)["path"] for side in ("base", "math")}
    for name, flags in CALIBRATED.items():
        report = run_json("compress", *zoo.values(), *flags, "--store", str(store), environment=environment)
        found[name] = {"ids": ids_below(stored(store), report["artifact"])}
    found |= merged(store, found["magnitude"]["ids"]["delta"], environment)
    found["search"] = searched(store, environment)
    arguments = ["evaluate", zoo["math"], "--tasks", "tinyzoo_math", "--limit", "2", "--store", str(store)]
    (result,) = run_json(*arguments, environment=environment)["results"]
    recipe = stored(store)[result["id"]]["recipe"]
    found["evaluation"] = {"ids": {"evaluation": result["id"]}, "lm_eval": lm_eval_version()}
    found["evaluation"]["ids"]["without its definition"] = undefined(recipe, "definition")
    return found


def merged(store: Path, delta: str, environment: dict[str, Any]) -> dict[str, Any]:
    """Merge; return the id of each record, and the SHA-256 of the weights."""
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, settings in MERGES.items():
            models = [{"model": str(GOLDEN / "finetuned")}, {"model": delta}]
            file, out = Path(scratch) / f"{name}.yaml", Path(scratch) / name
            file.write_text(json.dumps({"base_model": str(GOLDEN / "base"), "models": models, **settings}))
            report = run_json("merge", str(file), "--out", str(out), "--store", str(store), environment=environment)
            weights = (out / "model.safetensors").read_bytes()
            found[name] = {
                "ids": {"merged": report["artifact"]},
                "files": {"model.safetensors": hashlib.sha256(weights).hexdigest()},
            }
    return found


def searched(store: Path, environment: dict[str, Any]) -> dict[str, Any]:
    """Search two merges, one of them compressed; return the ids of the study and of both trials."""
    places = [run_json("tinyzoo", "path", one, environment=environment)["path"] for one in ("base", "math", "code")]
    template = {
        "merge_method": "task_arithmetic",
        "base_model": places[0],
        "models": [{"model": place} for place in places[1:]],
        "parameters": {"weight": 0.5},
        "impart": {"compress": {"choose": [None, {"method": "magnitude", "cr": 8}]}},
    }
    search = {"merge": template, "tasks": {"tinyzoo_math": "answer_loss"}, "sampler": "grid", "items": 1}
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "search.yaml"
        file.write_text(json.dumps(search))
        report = run_json("search", str(file), "--store", str(store), environment=environment)
    manifests = stored(store)
    study = manifests[report["id"]]["recipe"]
    ids = {"study": report["id"], "study without its definition": undefined(study, "definitions")}
    for made, manifest in manifests.items():
        recipe = manifest["recipe"]
        if manifest["content"]["kind"] == "trial" and recipe["config"]["split"] == "validation":
            for role in {"merged", "compressed"} & recipe["inputs"].keys():
                ids |= {f"trial {role}": made, f"trial {role} without its definition": undefined(recipe, "definition")}
    return {"ids": ids, "lm_eval": lm_eval_version()}


def undefined(recipe: dict[str, Any], key: str) -> str:
    """Return the digest of a recipe without the definition of its tasks, which is another with another lm-eval."""
    return canonical_digest({**recipe, "config": {**recipe["config"], key: ""}})


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


@pytest.mark.parametrize("name", [*COMPRESSIONS, *RESIDUALS, *CALIBRATED])
def test_ids_are_as_they_were(name: str, found: dict[str, Any]) -> None:
    assert found[name]["ids"] == EXPECTED[name]["ids"]


@pytest.mark.parametrize("name", [*COMPRESSIONS, *RESIDUALS])
def test_codes_are_as_they_were(name: str, found: dict[str, Any]) -> None:
    assert found[name]["decompositions"] == 0  # what was stored long ago is read today
    assert found[name]["files"] == EXPECTED[name]["files"]


@pytest.mark.parametrize("name", MERGES)
def test_merges_are_as_they_were(name: str, found: dict[str, Any]) -> None:
    assert found[name] == EXPECTED[name]


@pytest.mark.parametrize("name", ["evaluation", "search"])
def test_what_is_measured_has_the_ids_that_it_had(name: str, found: dict[str, Any]) -> None:
    ours, theirs = found[name], EXPECTED[name]
    assert ours["ids"].keys() == theirs["ids"].keys()
    for key in ours["ids"]:
        if "without" in key or ours["lm_eval"] == theirs["lm_eval"]:
            assert (key, ours["ids"][key]) == (key, theirs["ids"][key])


def test_every_operation_and_method_is_among_them(found: dict[str, Any]) -> None:
    made = {key.split()[0] for one in found.values() for key in one["ids"]}
    assert made >= {"delta", "block", "factors", "calibration", "activations", "scales", "sensitivity", "evaluation"}
    assert made >= {"merged", "study", "trial"}


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
