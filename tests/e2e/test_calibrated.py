"""What calibration is to an artifact: part of its id, its lineage, its upkeep, its transfers, and its events."""

import json
import shutil
from pathlib import Path

import pytest

from impart_core.calibrate.documents import read_documents
from impart_core.calibrate.text import CalibrationText, read_tokens
from impart_core.checkpoint.index import open_checkpoint
from impart_core.store.store import Store
from tests.e2e.here import printed, told
from tests.e2e.quantised import (
    BASE,
    CODED,
    LAYERS,
    MATH,
    REQUESTS,
    SHORT,
    TEXT,
    Report,
    blocks_of,
    codes_of,
    compress,
)
from tests.impart_core.pipeline import compress as compress_here
from tests.impart_core.pipeline import config_of
from tests.support import data_files, manifests

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("prefect_api")]


@pytest.mark.parametrize("method", ["impart-qt", "bitdelta distilled"])
def test_neither_workers_nor_processes_nor_the_pipeline_change_a_byte(
    method: str, reports: dict[str, Report], store: Path, tmp_path: Path
) -> None:
    wanted = codes_of(store, reports[method]["artifact"])
    options = REQUESTS[method]
    alone = told(*compress(method, 64, tmp_path / "alone", *options, "--workers", "1"))
    assert (alone["artifact"], alone["cached_blocks"]) == (reports[method]["artifact"], 0)
    assert codes_of(tmp_path / "alone", alone["artifact"]) == wanted
    text = CalibrationText(source="tinyzoo:math", sequences=8, length=int(options[-1]))
    tokens = read_tokens(text, open_checkpoint(MATH))
    library = Store(tmp_path / "library")
    chosen = {"distil": True} if "distilled" in method else {}
    config = config_of(64, method=method.split()[0], options=chosen)
    delta = compress_here(library, Path(BASE), Path(MATH), config, tokens=tokens, keep_factors=True)
    assert delta.manifest.id == alone["artifact"]
    assert codes_of(tmp_path / "library", delta.manifest.id) == wanted


def test_the_text_is_part_of_the_id_by_its_tokens_alone(
    reports: dict[str, Report], store: Path, tmp_path: Path
) -> None:
    documents = [document for document, _ in zip(read_documents("tinyzoo:math"), range(400), strict=False)]
    path = tmp_path / "same.jsonl"
    path.write_text("\n".join(json.dumps({"text": document}) for document in documents))
    same = told(*compress("dare-qt", 64, store, "--calibration", str(path), *SHORT))
    wanted = reports["dare-qt"]
    assert (same["artifact"], same["cached_blocks"]) == (wanted["artifact"], LAYERS + 1)
    other = told(*compress("dare-qt", 64, tmp_path, "--calibration", "tinyzoo:code", *SHORT))
    assert other["artifact"] != wanted["artifact"]
    ours, theirs = (codes_of(place, report["artifact"]) for place, report in ((store, wanted), (tmp_path, other)))
    assert len(ours.keys() & theirs.keys()) == 1  # what is outside of the layers
    assert len(set(ours.values()) & set(theirs.values())) == 1  # the bits differ, and not the ids alone


def test_activations_are_gone_and_the_text_stays(reports: dict[str, Report], store: Path) -> None:
    found = manifests(store)
    assert not [made for made in found.values() if made["content"]["kind"] == "activations"]
    assert not list(store.glob("artifacts/*/batch*"))
    assert not list(store.glob("pins/*"))
    assert not list(store.glob("sweeps/*"))
    text, shorter = text_of(store, 64), text_of(store, 16)
    for method in CODED:
        blocks = blocks_of(store, reports[method]["artifact"])
        assert all((text in block["parents"]) == (block["content"]["name"] != "outside") for block in blocks)
    (scales,) = manifests(store, "scales")
    assert found[scales]["parents"] == [shorter]
    for block in blocks_of(store, reports["bitdelta distilled"]["artifact"]):
        told = {scales, shorter} & set(block["parents"])
        assert told == (set() if block["content"]["name"] == "outside" else {scales, shorter})


def text_of(store: Path, length: int) -> str:
    """Return the id of the calibration text whose sequences have this length."""
    (found,) = (made for made, text in manifests(store, "calibration").items() if text["content"]["length"] == length)
    return found


def test_lineage_and_why_lead_to_the_text(reports: dict[str, Report], store: Path) -> None:
    place, delta = ["--store", str(store)], reports["impart-qt"]["artifact"]
    text = text_of(store, 64)
    graph = json.loads(printed("lineage", "impart-qt@cr64", *place, "--format", "json"))
    kinds = {node["id"]: (node["kind"], node["count"]) for node in graph["nodes"]}
    assert kinds[text] == ("calibration", 1)
    assert sorted(kinds.values())[:2] == [("block", LAYERS + 1), ("calibration", 1)]
    (blocks,) = (node["id"] for node in graph["nodes"] if node["kind"] == "block")
    assert [text, blocks] in graph["edges"]
    made = {reports[method]["artifact"] for method in CODED}
    assert made == {node["id"] for node in told("lineage", text, *place)["nodes"] if node["kind"] == "delta"}
    given = {one["role"]: one["id"] for one in told("why", "impart-qt@cr64", *place)["inputs"]}
    assert given["calibration"] == text
    (layer,) = (made for made in blocks_of(store, delta) if made["content"]["name"] == "model.layers.1")
    given = {one["role"]: one["id"] for one in told("why", layer["id"], *place)["inputs"]}
    assert given["calibration"] == text
    assert given.keys() >= {"activations", "factors", "model"}
    for words in (printed("why", "impart-qt@cr64", *place), printed("lineage", "impart-qt@cr64", *place)):
        assert text[:12] in words


@pytest.fixture
def copy(reports: dict[str, Report], store: Path, tmp_path: Path) -> Path:
    """A copy of the shared store."""
    return shutil.copytree(store, tmp_path / "copy")


def test_the_collector_keeps_the_text_of_what_is_named(copy: Path, reports: dict[str, Report]) -> None:
    texts = set(manifests(copy, "calibration"))
    unnamed = told(*compress("dare-qt", 64, copy, "--calibration", "tinyzoo:chat", *SHORT))
    (other,) = manifests(copy, "calibration").keys() - texts
    swept = told("gc", "--grace", "0s", "--delete", "--store", str(copy))
    assert swept["artifacts"]["calibration"] == [other]
    assert swept["artifacts"]["delta"] == [unnamed["artifact"]]
    assert set(manifests(copy, "calibration")) == texts
    assert told("verify", "--all", "--store", str(copy))["ok"]


def test_export_and_import_carry_the_text_with_the_factors(copy: Path, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    names = ["impart-qt@cr64", "bitdelta-distilled@cr64"]
    sent = told("export", *names, "--to", str(there), "--factors", "--store", str(copy))
    kinds = {"block": 2 * LAYERS + 1, "calibration": 2, "delta": 2, "factors": LAYERS, "scales": 1}
    assert sent["copied"]["artifacts"] == kinds
    told("import", *names, "--from", str(there), "--factors", "--store", str(back))
    assert data_files(back) == data_files(there)
    assert data_files(back).items() <= data_files(copy).items()
    assert told("verify", "--all", "--store", str(back))["ok"]
    again = told(*compress("impart-qt", 64, back, *TEXT), "--trust-imported")
    assert again["cached_blocks"] == LAYERS + 1
    without = told("export", *names, "--to", str(tmp_path / "without"), "--store", str(copy))
    assert without["copied"]["artifacts"] == {"block": 2 * LAYERS + 1, "delta": 2}
    assert told("verify", "--all", "--store", str(tmp_path / "without"))["ok"]


Stages = dict[str, int]
ALL = {"compress": 1, "calibration": 1, "block": LAYERS + 1, "delta": 1}
OBSERVED = {
    "impart-qt": {**ALL, "factors": LAYERS},
    "bitdelta distilled": {**ALL, "block": 2 * LAYERS + 1, "scales": 1},
}


@pytest.mark.parametrize("method", OBSERVED)
def test_events_tell_what_calibrated_stages_read_and_made(
    method: str, reports: dict[str, Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, log = tmp_path / "store", tmp_path / "events"
    target = {"type": "file", "log_file_path": str(log), "append": True}
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT", json.dumps(target))
    report = told(*compress(method, 64, store, *REQUESTS[method]))
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert (report["events_sent"], report["events_lost"]) == (len(events), 0)
    jobs = [event["job"]["name"] for event in events if event["eventType"] == "COMPLETE"]
    assert {job: jobs.count(job) for job in jobs} == OBSERVED[method]
    stored, made_from, made = manifests(store), dict[str, set[str]](), list[str]()
    for event in events:
        for side in ("inputs", "outputs"):
            names = [(found["namespace"], found["name"]) for found in event[side]]
            assert len(set(names)) == len(names), event["job"]["name"]
            for found in event[side]:
                if found["name"].startswith("artifacts/"):
                    assert found["namespace"] == f"file://{store}"
                    kind = found.get("facets", {}).get("impart_artifact", {}).get("kind")
                    assert kind == stored[found["name"].split("/")[1]]["content"]["kind"], event["job"]["name"]
        if event["job"]["name"] != "compress":
            made += [found["name"] for found in event["outputs"]]
            for found in event["outputs"]:
                made_from.setdefault(found["name"], set()).update(given["name"] for given in event["inputs"])
    assert sorted(made) == sorted(f"artifacts/{artifact}" for artifact in stored)
    for artifact, manifest in stored.items():
        artifacts = {name for name in made_from[f"artifacts/{artifact}"] if name.startswith("artifacts/")}
        assert artifacts == {f"artifacts/{parent}" for parent in manifest["parents"]}
