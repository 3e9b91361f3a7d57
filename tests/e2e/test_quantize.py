"""Quantised methods through the command line: `compress` with calibration text, `quantize`, and `inspect`."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from impart_core.store.store import Store
from tests.e2e.here import impart, printed, told
from tests.e2e.quantised import (
    BASE,
    CODE,
    CODED,
    LAYERS,
    MATH,
    MATRICES,
    REQUESTS,
    TEXT,
    Report,
    blocks_of,
    codes_of,
    compress,
    name_of,
)
from tests.impart_core.pipeline import compress as compress_here
from tests.impart_core.pipeline import config_of, stored_path
from tests.support import manifests

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("prefect_api")]

RATIOS = (16, 32, 64, 128)


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The zoo's base and its math model with their first layer alone."""
    root = tmp_path_factory.mktemp("one-layer")
    return with_one_layer(Path(BASE), root / "base"), with_one_layer(Path(MATH), root / "finetuned")


@pytest.fixture(scope="module")
def sweep(
    one_layer: tuple[Path, Path], prefect_api: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, int], Report]:
    """What each quantising method reported at each ratio, of the models with one layer."""
    place = ["--store", str(tmp_path_factory.mktemp("sweep")), *TEXT]
    return {
        (method, cr): told("compress", *map(str, one_layer), "--method", method, "--cr", str(cr), *place)
        for method in CODED
        for cr in RATIOS
    }


def with_one_layer(folder: Path, out: Path) -> Path:
    """Save the first layer of a zoo model, and what lies outside of its layers, as a model."""
    shutil.copytree(folder, out)
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if ".layers." not in name or ".layers.0." in name}
    config = json.loads((folder / "config.json").read_text())
    save_file(kept, out / "model.safetensors")
    (out / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    return out


@pytest.mark.parametrize("cr", RATIOS)
@pytest.mark.parametrize("method", CODED)
def test_the_projections_are_at_least_as_small_as_requested(
    method: str, cr: int, sweep: dict[tuple[str, int], Report]
) -> None:
    report = sweep[method, cr]
    assert cr <= report["cr_projection"]
    if cr <= 64:  # at 128 the room is for little more than the first pair, and one more does not fit
        assert report["cr_projection"] < 1.1 * cr


def test_methods_and_ratios_share_factors_that_go_deep_enough(sweep: dict[tuple[str, int], Report]) -> None:
    found = {request: (report["decompositions"], report["reused_factors"]) for request, report in sweep.items()}
    first = [("impart-qt", cr) for cr in (16, 32, 64)]  # each needs factors of another depth
    for request in sweep:
        wanted = (0, 0) if request[0] == "dare-qt" else (7, 0) if request in first else (0, 7)
        assert found[request] == wanted, request


@pytest.mark.parametrize("method", REQUESTS)
def test_an_artifact_is_whole_and_as_small_as_its_files_say(
    method: str, reports: dict[str, Report], store: Path
) -> None:
    report = reports[method]
    assert 64 <= report["cr_projection"] < 1.1 * 64
    assert (report["blocks"], report["remade"], report["retried"]) == (LAYERS + 1, [], [])
    stored = [block["content"] for block in blocks_of(store, report["artifact"])]
    dense, coded = (sum(block[f"projection_{what}bytes"] for block in stored) for what in ("dense_", ""))
    assert report["cr_projection"] == dense / coded
    assert told("verify", report["artifact"], "--store", str(store))["ok"]


@pytest.mark.parametrize("method", [*CODED, "bitdelta distilled"])
def test_a_second_run_reuses_every_block_and_writes_nothing(
    method: str, reports: dict[str, Report], store: Path
) -> None:
    before = written(store)
    again = told(*compress(method, 64, store, *REQUESTS[method]))
    first = reports[method]
    assert again["cached_blocks"] == again["blocks"] == LAYERS + 1
    assert (again["decompositions"], again["reused_factors"]) == (0, 0)
    assert {key: again[key] for key in ("artifact", "bytes")} == {key: first[key] for key in ("artifact", "bytes")}
    assert written(store) == before


def written(store: Path) -> dict[Path, int]:
    """Return when each file of a store was written, but for the catalogue's, which are merged when they are read."""
    paths = [path for path in store.rglob("*") if path.is_file() and path.parent.name != "catalog"]
    return {path: path.stat().st_mtime_ns for path in paths}


@pytest.mark.parametrize("method", [*CODED, "bitdelta", "bitdelta distilled"])
def test_what_is_rebuilt_has_moved_towards_the_fine_tune(
    method: str, reports: dict[str, Report], store: Path, tmp_path: Path
) -> None:
    name = f"{name_of(method)}@cr64"
    told("reconstruct", name, "--base", BASE, "--out", str(tmp_path / "out"), "--store", str(store))
    ours, theirs, found = (load_file(Path(folder) / "model.safetensors") for folder in (BASE, MATH, tmp_path / "out"))
    assert found.keys() == theirs.keys()
    along, whole = 0.0, 0.0
    for name, tensor in found.items():
        assert (tensor.dtype, tensor.shape) == (theirs[name].dtype, theirs[name].shape)
        if "_proj." in name:
            real, made = (side[name].double() - ours[name].double() for side in (theirs, found))
            along, whole = along + float((real * made).sum()), whole + float((real * real).sum())
    assert 0.1 < along / whole < 2


def test_quantize_makes_what_compress_makes_and_decomposes_nothing(
    reports: dict[str, Report], store: Path, tmp_path: Path
) -> None:
    plain = told(*compress("impart", 16, tmp_path, "--name", "plain"))
    assert plain["decompositions"] == MATRICES
    made = told("quantize", "plain", "--cr", "64", *TEXT, "--name", "quantised", "--store", str(tmp_path))
    wanted = reports["impart-qt"]
    assert (made["artifact"], made["cr_projection"]) == (wanted["artifact"], wanted["cr_projection"])
    assert (made["decompositions"], made["reused_factors"], made["name"]) == (0, MATRICES, "quantised")
    assert made["cached_blocks"] == 1  # what is outside of the layers is the same
    assert codes_of(tmp_path, made["artifact"]) == codes_of(store, made["artifact"])
    other = ["--method", "delta-come", "--cr", "64", *TEXT]
    again = told("quantize", "quantised", *other, "--store", str(tmp_path))  # what is quantised is a delta as well
    assert again["artifact"] == reports["delta-come"]["artifact"]
    assert again["decompositions"] == 0


def test_quantize_keeps_the_settings_of_what_it_quantises(tmp_path: Path, prefect_api: str) -> None:
    kept = ["--seed", "3", "--embeddings", "lowrank", "--embeddings-cr", "4"]
    told(*compress("lowrank", 16, tmp_path, *kept, "--name", "plain"))
    place = ["--cr", "32", "--option", "solver=nearest", "--store", str(tmp_path)]
    made = [told("quantize", "plain", *place), told("quantize", "plain", *place, "--seed", "4")]
    recipes = [manifests(tmp_path)[report["artifact"]]["recipe"]["config"] for report in made]
    assert [recipe["seed"] for recipe in recipes] == [3, 4]
    for recipe in recipes:
        assert (recipe["method"], recipe["embeddings"], recipe["embeddings_cr"]) == ("impart-qt", "lowrank", 4)
        assert recipe["options"]["solver"] == "nearest"
    same = ["--option", "solver=nearest", *kept]
    assert told(*compress("impart-qt", 32, tmp_path, *same))["artifact"] == made[0]["artifact"]


def test_quantize_serves_a_ratio_that_the_factors_of_its_delta_were_not_kept_for(
    tmp_path: Path, prefect_api: str
) -> None:
    told(*compress("impart", 32, tmp_path, "--factors-for", "32", "--name", "shallow"))
    made = told("quantize", "shallow", "--cr", "64", "--option", "solver=nearest", "--store", str(tmp_path))
    assert made["cr_projection"] >= 64


def test_quantize_serves_embeddings_that_the_factors_of_its_delta_were_not_kept_for(
    tmp_path: Path, prefect_api: str
) -> None:
    embeddings = ["--embeddings", "auto", "--embeddings-cr", "8", "--factors-for", "4"]
    told(*compress("impart", 32, tmp_path, *embeddings, "--name", "shallow"))
    made = told("quantize", "shallow", "--cr", "64", "--option", "solver=nearest", "--store", str(tmp_path))
    assert made["cr_projection"] >= 64


@pytest.fixture
def moved(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A store with a delta `plain` whose checkpoints have moved since, and where they lie now."""
    first, now = tmp_path / "first", tmp_path / "now"
    for folder, side in ((BASE, "base"), (MATH, "finetuned")):
        shutil.copytree(folder, first / side)
    told("compress", str(first / "base"), str(first / "finetuned"), "--cr", "16", "--method", "dare", "--name", "plain")
    shutil.move(first, now)
    return now / "base", now / "finetuned", first


def test_quantize_says_where_to_give_checkpoints_that_moved_and_takes_them(
    moved: tuple[Path, Path, Path], reports: dict[str, Report]
) -> None:
    base, finetuned, first = moved
    asked = ["quantize", "plain", "--method", "dare-qt", "--cr", "64", *TEXT]
    refused(asked, f"{first}/base does not exist", "has moved, give it with --base.")
    refused([*asked, "--base", str(base)], f"{first}/finetuned does not exist", "give it with --finetuned.")
    refused([*asked, "--base", str(base), "--finetuned", CODE], f"{CODE} is not the finetuned checkpoint", "differ")
    refused([*asked, "--base", CODE, "--finetuned", str(finetuned)], f"{CODE} is not the base checkpoint", "--base")
    made = told(*asked, "--base", str(base), "--finetuned", str(finetuned))
    assert made["artifact"] == reports["dare-qt"]["artifact"]


def refused(arguments: list[str], *phrases: str) -> None:
    """Check that a command ends with exit code 2 and one sentence that holds these phrases."""
    code, out, err = impart(*arguments)
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for phrase in phrases:
        assert phrase in err


@pytest.mark.parametrize(("method", "bits", "group"), [("impart-qt", "8x2", 128), ("dare-qt", "4x", 128)])
def test_inspect_tells_bits_groups_and_the_bytes_of_each_part(
    method: str, bits: str, group: int, reports: dict[str, Report], store: Path
) -> None:
    report, place = reports[method], ["--store", str(store)]
    shown = told("inspect", report["artifact"], *place)
    saved, lines = 0, printed("inspect", report["artifact"], *place).splitlines()
    for block in shown["blocks"][:LAYERS]:
        file = Path(store) / "artifacts" / block["id"] / block["files"][0]["path"]
        stored = {name: tensor.nbytes for name, tensor in load_file(file).items()}
        for name, tensor in block["contents"].items():
            found = tensor.get("quantized")
            assert (found is not None) == ("_proj." in name)
            if found is None:
                continue
            assert found["bits"].startswith(bits)
            assert found["group_size"] == group
            assert sum(found["parts"].values()) == tensor["bytes"]
            own = {key.rpartition(":")[2]: size for key, size in stored.items() if key.startswith(f"{name}:")}
            assert tensor["bytes"] == sum(own.values())
            named = ("codes", "scales", "zeros", "sigma")
            assert {part: found["parts"][part] for part in named} == {
                part: sum(size for key, size in own.items() if key.rpartition(".")[2] == part) for part in named
            }
            saved += found["packed"] - found["parts"]["codes"]
            sizes = [f"{size:,}" for size in (*found["parts"].values(), found["packed"])]
            rows = [[name, found["bits"], str(group), *sizes]]
            kept = tensor.get("fidelity", [])
            assert len(kept) == (1 if method == "dare-qt" else 0)  # what works from factors does not read the delta
            rows += [[name, f"{squared:.4f}", f"{gain:.4f}"] for squared, gain in kept]
            assert [line.split() for line in lines if line.startswith(name)] == rows
    assert saved == report["saved_bytes"] > 0
    assert any(line.startswith(f"lossless stage  {saved:,} bytes saved") for line in lines)


def test_without_the_lossless_stage_nothing_is_saved(reports: dict[str, Report], store: Path, tmp_path: Path) -> None:
    report = told(*compress("dare-qt", 64, tmp_path, "--option", "lossless=false", *TEXT))
    assert report["saved_bytes"] == 0
    assert report["cr_projection"] >= 64
    entries = [entry["quantized"] for block in blocks_of(tmp_path, report["artifact"])
               for entry in block["content"]["tensors"].values() if "quantized" in entry]  # fmt: skip
    assert len(entries) == MATRICES
    assert all(entry["packed"] == entry["parts"]["codes"] for entry in entries)
    text = printed("inspect", report["artifact"], "--store", str(tmp_path))
    assert "lossless stage  0 bytes saved, 0.0% of the packed codes" in text


def test_tokens_reach_every_method_through_the_library(one_layer: tuple[Path, Path], tmp_path: Path) -> None:
    """The calibrated codes are others than those of plain rounding, and other tokens give other codes."""
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(3, 100, (2, 16), generator=generator, dtype=torch.int32) for _ in range(2)]
    for method in CODED:
        codes = []
        for number, tokens in enumerate([*texts, None]):
            solver = {} if tokens is not None else {"solver": "nearest"}
            config = config_of(64, method=method, options={**solver, "fill": False})
            delta = compress_here(Store(tmp_path / f"{method}-{number}"), *one_layer, config, tokens=tokens)
            codes.append(stored_path(delta).read_bytes())
        assert len(set(codes)) == 3, method
