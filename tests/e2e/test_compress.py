"""`impart compress`, and what every other verb then says about the artifact."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.support import (
    Environment,
    data_files,
    make_pair,
    manifests,
    run_impart,
    run_json,
    run_together,
    save_checkpoint,
)

pytestmark = pytest.mark.e2e

RATIOS = (4, 8, 16, 32)
KEYS = {
    *("artifact", "cr_projection", "cr_model", "bytes", "blocks", "cached_blocks"),
    *("decompositions", "reused_factors", "fallbacks", "seconds", "peak_rss_bytes"),
}
FILES = 3 + 2 + 1  # three blocks' codes, two layers' factors, and the fine-tune's own config.json
Pair = tuple[Path, Path]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A base and a fine-tune whose configurations differ, with projections large enough for CR 32."""
    shapes = {"hidden": 128, "intermediate": 192, "key_value": 64}
    base, finetuned = make_pair(tmp_path_factory.mktemp("models"), **shapes)
    config = json.loads((finetuned / "config.json").read_text())
    (finetuned / "config.json").write_text(json.dumps({**config, "eos_token_id": 3}))
    return base, finetuned


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that this file's compressions share."""
    return tmp_path_factory.mktemp("shared") / "store"


@pytest.fixture(scope="module")
def compressed(models: Pair, store: Path, environment: Environment) -> dict[int, dict[str, Any]]:
    """What `compress --json` printed at each ratio, into the shared store."""
    commands = [compress(models, cr, store, "--name", f"tiny@cr{cr}", "--workers", "4") for cr in RATIOS]
    return dict(zip(RATIOS, run_together(*commands, environment=environment), strict=True))


def compress(models: Pair, cr: float, store: Path, *options: str) -> list[str]:
    """Return the arguments of a compression."""
    return ["compress", str(models[0]), str(models[1]), "--cr", str(cr), "--store", str(store), *options]


def artifact_folder(store: Path, artifact: str) -> Path:
    """Return where an artifact lies."""
    return store / "artifacts" / artifact


def disk_bytes(folder: Path) -> int:
    """Return the bytes of all files of a folder."""
    return sum(path.stat().st_size for path in folder.iterdir())


def block_ids(store: Path, artifact: str) -> list[str]:
    """Return the ids that a delta's manifest points to."""
    return [block["id"] for block in manifests(store)[artifact]["content"]["blocks"]]


def test_compress_prints_one_object_with_all_that_a_script_needs(compressed: dict[int, dict[str, Any]]) -> None:
    for report in compressed.values():
        assert report.keys() >= KEYS
        assert len(report["artifact"]) == 64
        assert report["blocks"] == 3  # two layers, and what is outside of them
        assert report["seconds"] > 0
        assert report["peak_rss_bytes"] > 1 << 20


@pytest.mark.parametrize("cr", RATIOS)
def test_the_projections_are_at_least_as_small_as_requested(compressed: dict[int, dict[str, Any]], cr: int) -> None:
    assert cr <= compressed[cr]["cr_projection"] < 1.05 * cr  # the budget is used up, too


@pytest.mark.parametrize("cr", RATIOS)
def test_both_ratios_are_what_another_reader_finds_in_the_files(
    compressed: dict[int, dict[str, Any]], models: Pair, store: Path, cr: int
) -> None:
    blocks = block_ids(store, compressed[cr]["artifact"])
    codes = 0
    for block in blocks:
        (file,) = artifact_folder(store, block).glob("*.safetensors")
        codes += sum(tensor.nbytes for name, tensor in load_file(file).items() if "_proj.weight:" in name)
    weights = load_file(models[1] / "model.safetensors")
    dense = sum(2 * tensor.numel() for name, tensor in weights.items() if "_proj." in name)
    assert compressed[cr]["cr_projection"] == dense / codes
    on_disk = sum(disk_bytes(artifact_folder(store, made)) for made in [compressed[cr]["artifact"], *blocks])
    assert compressed[cr]["bytes"] == on_disk
    assert compressed[cr]["cr_model"] == disk_bytes(models[1]) / on_disk


def test_a_second_run_reuses_every_block_and_writes_nothing(
    compressed: dict[int, dict[str, Any]], models: Pair, store: Path, environment: Environment
) -> None:
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}
    again = run_json(*compress(models, 4, store, "--name", "tiny@cr4"), environment=environment)
    assert again["cached_blocks"] == again["blocks"] == 3
    for key in ("artifact", "bytes", "cr_model", "cr_projection"):
        assert again[key] == compressed[4][key]
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()} == before


def test_the_worker_count_does_not_change_a_byte(
    compressed: dict[int, dict[str, Any]], models: Pair, store: Path, tmp_path: Path, environment: Environment
) -> None:
    alone = run_json(*compress(models, 8, tmp_path, "--workers", "1"), environment=environment)
    assert alone["artifact"] == compressed[8]["artifact"]
    assert alone["cached_blocks"] == 0
    ours, theirs = data_files(tmp_path), data_files(store)  # the shared store holds other ratios as well
    assert len(ours) == FILES
    assert ours.items() <= theirs.items()


def test_two_runs_at_once_publish_the_same_artifact_whole(
    models: Pair, tmp_path: Path, environment: Environment
) -> None:
    ours, theirs = run_together(*[compress(models, 4, tmp_path)] * 2, environment=environment)
    assert ours["artifact"] == theirs["artifact"]
    assert run_json("verify", ours["artifact"], "--store", str(tmp_path))["ok"]
    assert len(data_files(tmp_path)) == FILES
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_artifact_depends_on_content_and_seed_only(
    compressed: dict[int, dict[str, Any]], models: Pair, store: Path, tmp_path: Path, environment: Environment
) -> None:
    moved = (shutil.copytree(models[0], tmp_path / "moved" / "b"), shutil.copytree(models[1], tmp_path / "moved" / "f"))
    sharded = (in_shards(models[0], tmp_path / "sharded" / "b"), in_shards(models[1], tmp_path / "sharded" / "f"))
    commands = [compress(moved, 4, store), compress(sharded, 4, store), compress(models, 4, store, "--seed", "1")]
    elsewhere, split, reseeded = run_together(*commands, environment=environment)
    for same in (elsewhere, split):
        assert same["artifact"] == compressed[4]["artifact"]
        assert same["cached_blocks"] == 3
    assert reseeded["artifact"] != compressed[4]["artifact"]
    assert reseeded["cached_blocks"] == 1  # what is outside the layers has no masks
    shared = set(block_ids(store, reseeded["artifact"])) & set(block_ids(store, compressed[4]["artifact"]))
    assert len(shared) == 1


def in_shards(folder: Path, out: Path) -> Path:
    """Save a checkpoint again in shards of at most 100 kB, its other files as they are."""
    save_checkpoint(out, load_file(folder / "model.safetensors"), max_shard_bytes=100_000)
    shutil.copyfile(folder / "config.json", out / "config.json")
    assert len(list(out.glob("model-*.safetensors"))) > 3
    return out


def test_reconstruction_is_bit_identical_and_follows_the_fine_tune(
    compressed: dict[int, dict[str, Any]], models: Pair, store: Path, tmp_path: Path
) -> None:
    place = ["--base", str(models[0]), "--store", str(store)]
    commands = [["reconstruct", "tiny@cr4", *place, "--out", str(tmp_path / name)] for name in ("one", "two")]
    reports = run_together(*commands)
    assert {report["artifact"] for report in reports} == {compressed[4]["artifact"]}
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    assert one.keys() == {"config.json", "model.safetensors"}
    assert one["config.json"] == (models[1] / "config.json").read_bytes()
    assert_rebuilt(tmp_path / "one", *models)


def assert_rebuilt(rebuilt: Path, base: Path, finetuned: Path) -> None:
    """Check a rebuilt checkpoint's names, shapes and dtypes, and that its deltas point where the real ones do."""
    with safe_open(rebuilt / "model.safetensors", "pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    ours, theirs = load_file(base / "model.safetensors"), load_file(finetuned / "model.safetensors")
    assert found.keys() == theirs.keys()
    for name, tensor in found.items():
        assert (tensor.dtype, tensor.shape) == (theirs[name].dtype, theirs[name].shape)
        rebuilt_delta, delta = (side[name].double() - ours[name].double() for side in (found, theirs))
        along = (rebuilt_delta * delta).sum() / (delta * delta).sum()
        # Rescaling keeps what is left unbiased: all of the delta, less the tail that is pre-pruned, and noise.
        # What is kept at 16 bits is as it was, less float16's rounding.
        assert abs(along - 1) < (0.4 if "_proj." in name else 0.01), name


def test_shards_of_a_reconstruction_hold_the_same_tensors(
    compressed: dict[int, dict[str, Any]], models: Pair, store: Path, tmp_path: Path
) -> None:
    place = ["--base", str(models[0]), "--store", str(store)]
    short = compressed[32]["artifact"][:8]
    whole = ["reconstruct", short, *place, "--out", str(tmp_path / "whole")]
    parts = ["reconstruct", short, *place, "--out", str(tmp_path / "parts"), "--max-shard-bytes", "100000"]
    run_together(whole, parts)
    index = json.loads((tmp_path / "parts" / "model.safetensors.index.json").read_text())["weight_map"]
    one = load_file(tmp_path / "whole" / "model.safetensors")
    assert index.keys() == one.keys()
    for file in set(index.values()):
        for name, tensor in load_file(tmp_path / "parts" / file).items():
            assert index[name] == file
            assert torch.equal(tensor, one[name])


def test_inspect_tells_the_sizes_on_disk(compressed: dict[int, dict[str, Any]], store: Path) -> None:
    shown = run_json("inspect", "tiny@cr16", "--store", str(store))
    assert shown["artifact"] == compressed[16]["artifact"]
    assert [block["id"] for block in shown["blocks"]] == block_ids(store, shown["artifact"])
    for block in shown["blocks"]:
        folder = artifact_folder(store, block["id"])
        assert block["bytes"] == disk_bytes(folder)
        assert all(entry["size"] == (folder / entry["path"]).stat().st_size for entry in block["files"])
    assert shown["own_bytes"] == disk_bytes(artifact_folder(store, shown["artifact"]))
    assert shown["bytes"] == shown["own_bytes"] + sum(block["bytes"] for block in shown["blocks"])
    assert shown["bytes"] == compressed[16]["bytes"]


def test_the_method_and_all_its_options_are_in_the_recipe(
    models: Pair, tmp_path: Path, environment: Environment
) -> None:
    ablated = compress(models, 8, tmp_path, "--option", "beta=0.5", "--option", "allocation=uniform")
    dare, uniform = run_together(compress(models, 8, tmp_path, "--method", "dare"), ablated, environment=environment)
    recipes = [manifests(tmp_path)[report["artifact"]]["recipe"]["config"] for report in (dare, uniform)]
    assert [(recipe["method"], recipe["options"]) for recipe in recipes] == [
        ("dare", {}),
        ("impart", {"beta": 0.5, "c": 1.0, "preprune": True, "allocation": "uniform", "rescale": True}),
    ]
    assert min(report["cr_projection"] for report in (dare, uniform)) >= 8


@pytest.mark.parametrize("cr", [4, 32])
def test_the_plan_foretells_the_bytes(
    compressed: dict[int, dict[str, Any]], models: Pair, store: Path, cr: int
) -> None:
    plan = run_json("plan", str(models[0]), str(models[1]), "--cr", str(cr))
    contents = [manifests(store)[block]["content"] for block in block_ids(store, compressed[cr]["artifact"])]
    assert [block["name"] for block in plan["blocks"]] == [content["name"] for content in contents]
    for planned, content in zip(plan["blocks"], contents, strict=True):
        assert planned["dense_bytes"] == content["projection_dense_bytes"]
        assert content["projection_bytes"] <= planned["projection_bytes"] <= 1.05 * content["projection_bytes"]
    assert plan["cr_projection"] <= compressed[cr]["cr_projection"]
    assert compressed[cr]["bytes"] <= plan["bytes"] <= 1.15 * compressed[cr]["bytes"]


def test_ls_names_what_was_published(compressed: dict[int, dict[str, Any]], store: Path) -> None:
    listed = {entry["id"]: entry for entry in run_json("ls", "--store", str(store))["artifacts"]}
    for cr, report in compressed.items():
        entry = listed[report["artifact"]]
        assert entry["names"] == [f"tiny@cr{cr}"]
        assert entry["kind"] == "delta"
        assert entry["bytes"] == report["bytes"]


def test_verify_finds_a_fresh_artifact_whole(compressed: dict[int, dict[str, Any]], store: Path) -> None:
    report = run_json("verify", "tiny@cr4", "--store", str(store))
    assert report["ok"]
    assert report["faults"] == []
    assert (report["artifacts"], report["files"]) == (4, 4)
    stored = [manifests(store)[made] for made in [report["artifact"], *block_ids(store, report["artifact"])]]
    assert report["bytes"] == sum(entry["size"] for made in stored for entry in made["files"])


def test_what_is_left_behind_code_and_adapters_are_told(models: Pair, environment: Environment, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "org/another"}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    lora = {f"{name}A.weight": torch.ones(2, 128), f"{name}B.weight": torch.ones(128, 2)}
    save_file(lora, adapter / "adapter_model.safetensors")
    (adapter / "own.py").write_text("answer = 42")
    (adapter / "optimizer.pt").write_text("")
    done = run_impart(*compress((models[0], adapter), 4, tmp_path / "store", "--name", "lora"), environment=environment)
    assert done.returncode == 0
    assert "code           own.py: carried, never run" in done.stdout
    assert "left behind    optimizer.pt" in done.stdout
    assert f"The adapter {adapter} is merged into {models[0]}." in done.stderr
    assert "The adapter calls its base 'org/another'" in done.stderr
    sources = run_json("why", "lora", "--store", str(tmp_path / "store"), environment=environment)
    assert str(adapter) in json.dumps(sources)
