"""Checkpoints in a real S3 server and on a Hub: the same artifacts as from folders, and failures as sentences."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import s3fs
from safetensors.torch import load_file

from impart_core.apply.dense import reconstruct
from impart_core.artifacts.delta import Delta
from impart_core.base.errors import CheckpointError
from impart_core.checkpoint.index import open_checkpoint
from impart_core.engine.plan import make_plan
from impart_core.store.store import Store
from tests.impart_core import pipeline as library
from tests.s3proxy import S3Proxy
from tests.servers import MAIN, Hub, hub_server
from tests.support import (
    Environment,
    data_files,
    finetune,
    make_pair,
    manifests,
    run_impart,
    run_json,
    save_checkpoint,
)

pytestmark = pytest.mark.e2e

Pair = tuple[Path, Path]
FIRST_RANGE = 64 << 10


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A base and a fine-tune of 2.4 MB each, whose configurations differ."""
    base, finetuned = make_pair(tmp_path_factory.mktemp("models"), hidden=256, intermediate=512, key_value=128)
    config = json.loads((finetuned / "config.json").read_text())
    (finetuned / "config.json").write_text(json.dumps({**config, "eos_token_id": 3}))
    return base, finetuned


def filesystem(s3: dict[str, str]) -> Any:
    """Return a client of the server, past any proxy."""
    return s3fs.S3FileSystem(
        key=s3["AWS_ACCESS_KEY_ID"], secret=s3["AWS_SECRET_ACCESS_KEY"], endpoint_url=s3["AWS_ENDPOINT_URL"]
    )


@pytest.fixture(scope="module")
def bucket(s3: dict[str, str], models: Pair) -> list[str]:
    """URLs of the base and the fine-tune in the server."""
    fs = filesystem(s3)
    for folder in models:
        for file in folder.iterdir():
            fs.put_file(str(file), f"impart/zoo/{folder.name}/{file.name}")
    return [f"s3://impart/zoo/{folder.name}" for folder in models]


@pytest.fixture(scope="module")
def local(models: Pair, tmp_path_factory: pytest.TempPathFactory) -> Delta:
    """What the library alone makes of the folders."""
    return library.compress(Store(tmp_path_factory.mktemp("local")), *models, library.config_of(4), keep_factors=True)


@pytest.fixture(scope="module")
def hub(models: Pair) -> Any:
    """A Hub that has the two models."""
    with hub_server({"zoo/base": models[0], "zoo/tuned": models[1]}) as server:
        yield server


def compress(places: Any, store: Path, environment: Environment) -> dict[str, Any]:
    """Compress at CR 4 and return what was printed."""
    return run_json("compress", *places, "--cr", "4", "--store", str(store), environment=environment)


def on(hub: Hub) -> dict[str, str | None]:
    """Return the variables that point a client to this Hub."""
    return {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": None, "HF_TOKEN": "hf_secret"}


def refused(*commands: tuple[str, Environment]) -> list[str]:
    """Run commands that must fail with a sentence, at the same time; return the sentences."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        done = list(pool.map(lambda command: run_impart(*command[0].split(), environment=command[1]), commands))
    for one in done:
        assert one.returncode == 2, one.stderr
        assert one.stderr.startswith("error: ")
        assert one.stderr.count("\n") == 1
        assert one.stdout == ""
    return [one.stderr for one in done]


def test_checkpoints_in_s3_make_the_artifact_of_the_folders_and_are_read_once(
    bucket: list[str],
    models: Pair,
    local: Delta,
    s3: dict[str, str],
    environment: Environment,
    tmp_path: Path,
) -> None:
    proxy = S3Proxy(s3["AWS_ENDPOINT_URL"])
    there = {**environment, **s3, "AWS_ENDPOINT_URL": proxy.url, "IMPART_CACHE": str(tmp_path / "cache")}
    weights = [(folder / "model.safetensors").stat().st_size for folder in models]

    plan = run_json("plan", *bucket, "--cr", "4", "--workers", "2", environment=there)
    expected = make_plan(*map(open_checkpoint, models), library.config_of(4), workers=2)
    (note,) = plan.pop("notes")
    assert note == expected.notes[0].replace(str(models[1]), bucket[1])
    told = {"notes": True, "bytes": True, "cr_model": True, "own_bytes": True}  # manifests name the places
    assert plan["bytes"] == plan["own_bytes"] + sum(
        block.pop("description_bytes") + block["projection_bytes"] + block["kept_bytes"] for block in plan["blocks"]
    )
    assert {key: value for key, value in plan.items() if key not in told} == expected.model_dump(
        mode="json", exclude={**told, "blocks": {"__all__": {"description_bytes"}}}
    )
    assert proxy.received < 2 * (FIRST_RANGE + 10_000)

    made = compress(bucket, tmp_path / "store", there)
    assert made["artifact"] == local.manifest.id
    assert data_files(tmp_path / "store") == data_files(Path(local.store.url))
    assert sum(weights) < proxy.received < 1.2 * sum(weights)  # what the digests read is kept for the work

    before = proxy.received
    again = compress(bucket, tmp_path / "store", there)
    assert (again["artifact"], again["cached_blocks"]) == (local.manifest.id, again["blocks"])
    assert proxy.received - before < 0.2 * sum(weights)
    for kept in (tmp_path / "cache").rglob("*"):
        assert kept.is_dir() or s3["AWS_SECRET_ACCESS_KEY"] not in kept.read_text()


def test_a_base_in_s3_rebuilds_the_fine_tune(
    bucket: list[str], models: Pair, local: Delta, s3: dict[str, str], tmp_path: Path
) -> None:
    place = ["--base", bucket[0], "--out", str(tmp_path / "far"), "--store", local.store.url]
    run_json("reconstruct", local.manifest.id[:12], *place, environment=s3)
    reconstruct(local, open_checkpoint(models[0]), tmp_path / "near")
    far, near = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("far", "near"))
    assert far == near


def test_s3_places_that_cannot_be_read_are_one_sentence(bucket: list[str], s3: dict[str, str], tmp_path: Path) -> None:
    base, finetuned = bucket
    wrong, missing = refused(
        (f"plan {base} {finetuned} --cr 4", {**s3, "AWS_SECRET_ACCESS_KEY": "hunter2"}),
        (f"compress s3://nowhere/base {finetuned} --cr 4 --store {tmp_path}", s3),
    )
    assert f"{base} may not be read" in wrong
    assert "Check the credentials" in wrong
    assert "hunter2" not in wrong
    assert "s3://nowhere/base does not exist" in missing


@pytest.mark.parametrize(
    ("place", "changed", "why"),
    [
        ("s3://impart/zoo/base", {"AWS_ACCESS_KEY_ID": "nobody"}, "may not be read"),
        ("s3://impart/zoo/base", {"IMPART_STORE_OPTIONS": '{"key": "nobody", "secret": "hunter2"}'}, "may not be read"),
        ("s3://impart/zoo/absent", {}, "s3://impart/zoo/absent does not exist"),
        ("s3://impart/zoo", {}, r"s3://impart/zoo has no config.json \(it holds base, finetuned\)"),
        ("s3://impart/zoo/base/config.json", {}, "is a file"),
    ],
)
def test_each_way_to_miss_a_checkpoint_in_s3_has_its_sentence(
    place: str,
    changed: dict[str, str],
    why: str,
    bucket: list[str],
    s3: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {**s3, **changed}.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(CheckpointError, match=why) as caught:
        open_checkpoint(place)
    s3fs.S3FileSystem.clear_instance_cache()
    assert "hunter2" not in str(caught.value)


def test_models_on_the_hub_are_pinned_and_make_the_artifact_of_the_folders(
    hub: Hub, local: Delta, environment: Environment, tmp_path: Path
) -> None:
    there = {**environment, **on(hub), "IMPART_CACHE": str(tmp_path / "cache")}
    made = compress(["zoo/base@main", "hf://zoo/tuned"], tmp_path / "store", there)
    assert made["artifact"] == local.manifest.id
    assert data_files(tmp_path / "store") == data_files(Path(local.store.url))
    read = [path for path, _ in hub.requests if "/resolve/" in path or "/tree/" in path]
    assert read
    assert all(f"/{MAIN}" in path for path in read)
    assert "hf_secret" not in json.dumps(manifests(tmp_path / "store"))


def test_hub_ids_that_lead_nowhere_are_one_sentence(hub: Hub, models: Pair) -> None:
    revision, silent = refused(
        (f"plan zoo/base@dev {models[1]} --cr 4", on(hub)),
        (f"plan zoo/base {models[1]} --cr 4", {**on(hub), "HF_ENDPOINT": "http://127.0.0.1:9"}),
    )
    assert "zoo/base has no revision 'dev'" in revision
    assert "There is no folder zoo/base. Read as a Hub id: The Hub's zoo/base cannot be reached" in silent


@pytest.mark.parametrize("verb", ["compress", "reconstruct"])
def test_help_says_where_checkpoints_may_lie(verb: str) -> None:
    done = run_impart(verb, "--help", environment={"COLUMNS": "200"})
    assert "Hub id (org/name@revision) or" in " ".join(done.stdout.split())


def test_a_zoo_finds_its_models_in_s3_and_on_the_hub_and_reads_those_that_changed(
    bucket: list[str],
    hub: Hub,
    models: Pair,
    local: Delta,
    s3: dict[str, str],
    environment: Environment,
    tmp_path: Path,
) -> None:
    proxy = S3Proxy(s3["AWS_ENDPOINT_URL"])
    there = {**environment, **s3, **on(hub), "AWS_ENDPOINT_URL": proxy.url, "IMPART_CACHE": str(tmp_path / "cache")}
    recipe = {"steps": [{"method": "impart", "cr": 4}]}
    zoo = {
        **{"zoo": "far", "store": "s3://impart/store-of-zoo", "recipes": {"default": recipe}},
        "models": [
            {"find": "s3://impart/zoo/*", "base": bucket[0], "name": "s3-{folder}"},
            {"find": "hf://zoo/*", "base": "zoo/base", "name": "hub-{folder}"},
        ],
    }
    file = tmp_path / "zoo.yaml"
    file.write_text(json.dumps(zoo))  # JSON is YAML

    def run() -> dict[str, tuple[str, str]]:
        found = run_json("zoo", "run", str(file), environment=there)["outcomes"]
        return {one["name"]: (one["status"], one["artifact"]) for one in found}

    def read(of_s3: int, of_hub: int) -> tuple[bool, bool]:
        far = [seen.path for seen in proxy.requests[of_s3:]], [path for path, _ in hub.requests[of_hub:]]
        from_s3, from_hub = (any(path.endswith("/model.safetensors") for path in paths) for paths in far)
        return from_s3, from_hub

    names = {f"s3-{models[1].name}", "hub-tuned"}
    assert run() == dict.fromkeys(names, ("promoted", local.manifest.id))  # one artifact, wherever the models lie
    assert read(0, 0) == (True, True)
    before, asked = len(proxy.requests), len(hub.requests)
    assert run() == dict.fromkeys(names, ("unchanged", local.manifest.id))
    assert read(before, asked) == (False, False)

    fs = filesystem(s3)
    new, changed = tmp_path / "new", "s3-" + models[1].name
    save_checkpoint(
        new,
        finetune(load_file(models[0] / "model.safetensors"), seed=5),
        json.loads((models[0] / "config.json").read_text()),
    )
    try:
        for name in ("new", models[1].name):
            for path in new.iterdir():
                fs.put_file(str(path), f"impart/zoo/{name}/{path.name}")
        outcomes = run()
        assert {name: status for name, (status, _) in outcomes.items()} == {
            changed: "promoted",
            "s3-new": "promoted",
            "hub-tuned": "unchanged",
        }
        assert outcomes[changed][1] == outcomes["s3-new"][1] != local.manifest.id
    finally:
        fs.rm("impart/zoo/new", recursive=True)
        for path in models[1].iterdir():
            fs.put_file(str(path), f"impart/zoo/{models[1].name}/{path.name}")
