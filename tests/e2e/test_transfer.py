"""Artifacts carried between stores and to the Hub by the command line: whole, interrupted, damaged."""

import json
import os
import shutil
import signal
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from impart_core.apply.dense import reconstruct
from impart_core.artifacts.delta import Delta, open_delta
from impart_core.checkpoint.index import open_checkpoint
from impart_core.store.names import set_ref
from impart_core.store.store import Store
from tests.impart_core import pipeline as library
from tests.servers import UPLOADER, hub_server
from tests.support import (
    Environment,
    finetune,
    halt_when,
    llama_shapes,
    manifests,
    random_tensors,
    run_impart,
    run_json,
    save_checkpoint,
    start_impart,
)

pytestmark = pytest.mark.e2e

Pair = tuple[Path, Path]
NAME = "math@prod"
BLOCKS = 61


@pytest.fixture(scope="module")
def deep_pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A pair of 60 layers, so that copying its delta takes long enough to be interrupted."""
    root, base = tmp_path_factory.mktemp("deep"), random_tensors(llama_shapes(layers=BLOCKS - 1))
    return save_checkpoint(root / "base", base), save_checkpoint(root / "finetuned", finetune(base))


@pytest.fixture(scope="module")
def deep(deep_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Delta:
    """Its delta, with a name."""
    store = Store(tmp_path_factory.mktemp("deep") / "store")
    delta = library.compress(store, *deep_pair, library.config_of(4))
    set_ref(store, NAME, delta.manifest.id)
    return delta


def rebuilt(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def published(store: Path, marked: bool | None = None) -> dict[str, bytes]:
    """Return every object of a local store's artifacts that is not scratch.

    `marked`: whether all are to be imports, which is looked at; what manifests record of their making is left out.
    """
    found = (store / "artifacts").glob("*/*")
    objects = {str(path.relative_to(store)): path.read_bytes() for path in found if path.suffix != ".tmp"}
    for path, data in objects.items() if marked is not None else ():
        if path.endswith("/manifest.json"):
            told = json.loads(data)
            assert told["provenance"].get("imported", False) is marked
            objects[path] = json.dumps({**told, "provenance": None, "seal": None}).encode()
    return objects


def test_a_delta_goes_to_s3_and_comes_back_and_rebuilds_the_same_bytes(
    pair: Pair, s3: dict[str, str], environment: Environment, tmp_path: Path
) -> None:
    here, back, far = tmp_path / "here", tmp_path / "back", f"s3://impart/{uuid.uuid4().hex}"
    there = {**environment, **s3}
    made = run_json("compress", *map(str, pair), "--cr", "4", "--name", NAME, "--store", str(here), environment=there)
    sent = run_json("export", NAME, "--to", far, "--store", str(here), environment=there)
    assert (sent["copied"]["artifacts"], sent["names"]) == ({"block": 3, "delta": 1}, {NAME: made["artifact"]})
    said = run_impart("import", NAME, "--from", far, "--store", str(back), environment=there)
    assert said.returncode == 0, said.stderr
    first, *rest = said.stdout.splitlines()
    assert first.startswith("copied   3 blocks, 1 delta: ")
    assert rest[:2] == ["skipped  nothing", f"names    {NAME}"]
    copied = published(back, marked=True)
    assert copied == {path: data for path, data in published(here, marked=False).items() if path in copied}
    assert set(manifests(back)) == set(manifests(here, "block", "delta"))
    checked = run_json("verify", "--all", "--store", far, environment=there)
    assert (checked["ok"], checked["artifacts"], checked["files"]) == (True, 4, 3)
    run_json("reconstruct", NAME, "--base", str(pair[0]), "--out", str(tmp_path / "two"), "--store", str(back))
    reconstruct(open_delta(Store(here), made["artifact"]), open_checkpoint(pair[0]), tmp_path / "one")
    assert rebuilt(tmp_path / "one") == rebuilt(tmp_path / "two")


def test_a_killed_export_shows_no_delta_and_goes_on_where_it_was(deep: Delta, tmp_path: Path) -> None:
    arguments = ["export", NAME, "--to", str(tmp_path), "--store", deep.store.url]
    process = start_impart(*arguments)
    try:
        halt_when(
            lambda: len(list(tmp_path.glob("artifacts/*/manifest.json"))) >= 3,
            process.send_signal,
            lambda: process.poll() is None,
        )
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
    finally:
        process.kill()
    finished = manifests(tmp_path)
    assert 3 <= len(finished) < BLOCKS
    assert {made["content"]["kind"] for made in finished.values()} == {"block"}
    assert not (tmp_path / "refs").exists()
    before = {path: path.stat().st_mtime_ns for made in finished for path in (tmp_path / "artifacts" / made).iterdir()}
    again = run_json(*arguments)
    assert again["skipped"]["artifacts"] == {"block": len(finished)}
    assert again["copied"]["artifacts"] == {"block": BLOCKS - len(finished), "delta": 1}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert published(tmp_path) == published(Path(deep.store.url))


def test_a_damaged_source_is_one_sentence_and_a_fault_for_each_file(deep: Delta, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    shutil.copytree(deep.store.url, source)
    damaged = [next((source / "artifacts" / block.id).glob("codes*")) for block in deep.blocks[:2]]
    for path in damaged:
        library.flip(path, -1)
    refused = run_impart("import", NAME, "--from", str(source), "--store", str(target))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert all(path.name in refused.stderr for path in damaged)
    assert f"{BLOCKS - 2} other artifacts were" in refused.stderr
    assert len(manifests(target)) == BLOCKS - 2
    assert manifests(target, "delta") == {}
    checked = run_impart("verify", "--all", "--store", str(source))
    assert checked.returncode == 1
    faults = [line for line in checked.stdout.splitlines() if line.startswith("fault: ")]
    assert len(faults) == 2
    assert all(any(path.name in fault for fault in faults) for path in damaged)
    assert f"has 2 faults: {BLOCKS + 1} artifacts" in checked.stdout


def test_the_folder_for_the_hub_is_uploaded_and_works_as_a_store(deep: Delta, deep_pair: Pair, tmp_path: Path) -> None:
    out, downloaded, own = tmp_path / "out", tmp_path / "downloaded", tmp_path / "own"
    command = ["push-hub", NAME, "--repo", "team/math", "--out", str(out), "--store", deep.store.url]
    with hub_server({}) as hub:
        online = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": None, "HF_HOME": str(tmp_path / "home")}
        refused = run_impart(*command, "--upload", environment={**online, "HF_TOKEN": "hf_wrong"})
        assert refused.returncode == 2
        assert refused.stderr.splitlines()[-1].startswith("error: The Hub refuses to write team/math: ")
        assert hub.uploaded == {}
        report = run_json(*command, "--upload", "--private", environment={**online, "HF_TOKEN": UPLOADER})
        assert report["url"] == f"{hub.url}/team/math"
        assert report["skipped"]["artifacts"] == {"block": BLOCKS, "delta": 1}
        for path, data in hub.uploaded["team/math"].items():
            (downloaded / path).parent.mkdir(parents=True, exist_ok=True)
            (downloaded / path).write_bytes(data)
    assert (downloaded / "README.md").read_text().startswith("---\n")
    run_json("import", NAME, "--from", str(downloaded), "--store", str(own))
    assert published(own, marked=True) == published(Path(deep.store.url), marked=False)
    place = ["--base", str(deep_pair[0]), "--out", str(tmp_path / "far"), "--store", str(downloaded)]
    run_json("reconstruct", NAME, *place)
    reconstruct(deep, open_checkpoint(deep_pair[0]), tmp_path / "near")
    assert rebuilt(tmp_path / "far") == rebuilt(tmp_path / "near")


def test_wrong_requests_are_one_sentence_each(deep: Delta) -> None:
    requests = {
        "verify": "either an artifact",
        f"verify {NAME} --all": "either an artifact",
        f"push-hub {NAME} --repo math --out out": "'math' names no repository of the Hub",
        f"export {NAME} --to nosuch://x": "'nosuch://x' cannot be opened",
        "import nothing --from .": "There is no artifact 'nothing'",
        f"export {NAME} --to {deep.store.url}": "Both stores are",
    }
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        store = {"IMPART_STORE": deep.store.url}
        done = list(pool.map(lambda request: run_impart(*request.split(), "--json", environment=store), requests))
    for one, why in zip(done, requests.values(), strict=True):
        assert one.returncode == 2
        assert why in json.loads(one.stdout)["error"]["message"]
        assert one.stderr.startswith("error: ")
        assert one.stderr.count("\n") == 1
