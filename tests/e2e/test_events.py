"""OpenLineage events: of every stage, to a file or over HTTP, enough to rebuild the lineage, and never in the way."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import jsonschema
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from referencing import Registry, Resource

from impart_core.base.errors import ConfigError
from impart_flows.events import observed_run
from tests.support import VECTORS, Environment, manifests, run_impart, without_notes

pytestmark = pytest.mark.e2e

KEY = "a-secret-key"
KINDS = {"factors": 2, "block": 3, "delta": 1}
Event = dict[str, Any]
Node = tuple[str, str]


class Receiver(ThreadingHTTPServer):
    """Takes events over HTTP.

    Attributes:
        requests: path, Authorization and body of each request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        """Listen on a port of its own."""
        super().__init__(("127.0.0.1", 0), _Answer)
        self.requests: list[tuple[str, str | None, Event]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Answer(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, self.headers.get("Authorization"), body))
        self.send_response(201)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    """A receiver that answers."""
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this file's runs put their stores, named after the runs, and their events."""
    return tmp_path_factory.mktemp("events")


@pytest.fixture(scope="module")
def runs(
    receiver: Receiver, root: Path, pair: tuple[Path, Path], environment: Environment
) -> dict[str, CompletedProcess[str]]:
    """A compression with each kind of receiver."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = {
            "file": {
                "OPENLINEAGE__TRANSPORT__TYPE": "file",
                "OPENLINEAGE__TRANSPORT__LOG_FILE_PATH": str(root / "events.jsonl"),
                "OPENLINEAGE__TRANSPORT__APPEND": "true",
            },
            "http": {"OPENLINEAGE_URL": receiver.url, "OPENLINEAGE_API_KEY": KEY},
            "dead": {"OPENLINEAGE_URL": f"http://127.0.0.1:{silent.getsockname()[1]}", "OPENLINEAGE_API_KEY": KEY},
        }

        def run(name: str) -> CompletedProcess[str]:
            arguments = ["compress", *map(str, pair), "--cr", "4", "--store", str(root / name), "--json"]
            return run_impart(*arguments, environment={**environment, **settings[name]})

        with ThreadPoolExecutor(max_workers=2) as pool:
            return dict(zip(settings, pool.map(run, settings), strict=True))


@pytest.fixture(scope="module")
def events(runs: dict[str, CompletedProcess[str]], root: Path, receiver: Receiver) -> dict[str, list[Event]]:
    """The events of the runs whose receivers took some."""
    written = [json.loads(line) for line in (root / "events.jsonl").read_text().splitlines()]
    return {"file": written, "http": [event for _, _, event in receiver.requests]}


@pytest.mark.parametrize("name", ["file", "http"])
def test_every_run_starts_and_ends_once_and_has_the_flow_run_as_its_parent(
    events: dict[str, list[Event]], runs: dict[str, CompletedProcess[str]], name: str
) -> None:
    report = json.loads(runs[name].stdout)
    assert (report["events_sent"], report["events_lost"]) == (len(events[name]), 0)
    steps: dict[str, list[str]] = {}
    for event in events[name]:
        steps.setdefault(event["run"]["runId"], []).append(event["eventType"])
    assert all(types == ["START", "COMPLETE"] for types in steps.values())
    jobs = [event["job"]["name"] for event in events[name] if event["eventType"] == "START"]
    assert {job: jobs.count(job) for job in set(jobs)} == {**KINDS, "compress": 1}
    (flow_run,) = {event["run"]["runId"] for event in events[name] if event["job"]["name"] == "compress"}
    for event in events[name]:
        assert event["job"]["namespace"] == "impart"
        parent = event["run"]["facets"].get("parent")
        if event["job"]["name"] == "compress":
            assert parent is None
        else:
            assert (parent["run"]["runId"], parent["job"]["name"]) == (flow_run, "compress")


@pytest.mark.parametrize("name", ["file", "http"])
def test_events_are_valid_by_openlineages_own_schemas(events: dict[str, list[Event]], name: str) -> None:
    schemas = json.loads((VECTORS / "openlineage.json").read_text())["schemas"]
    registry = Registry().with_resources([(schema["$id"], Resource.from_contents(schema)) for schema in schemas])
    seen = set()
    for event in events[name]:
        for part in [event, *event["run"]["facets"].values(), *event["job"]["facets"].values()]:
            where = part.get("schemaURL") or part["_schemaURL"]
            seen.add(where.rpartition("/")[2])
            if where.partition("#")[0] in registry:
                check = jsonschema.Draft202012Validator({"$ref": where}, registry=registry)
                check.validate(part)
    assert seen == {"RunEvent", "ParentRunFacet", "JobTypeJobFacet", "TagsRunFacet"}


@pytest.mark.parametrize("name", ["file", "http"])
def test_the_lineage_can_be_rebuilt_from_events_alone(
    events: dict[str, list[Event]],
    runs: dict[str, CompletedProcess[str]],
    pair: tuple[Path, Path],
    root: Path,
    name: str,
) -> None:
    made_from: dict[Node, set[Node]] = {}
    for event in events[name]:
        if event["job"]["name"] != "compress":  # the stages alone
            for output in event["outputs"]:
                parents = {(found["namespace"], found["name"]) for found in event["inputs"]}
                made_from.setdefault((output["namespace"], output["name"]), set()).update(parents)
    checkpoints = {("file", str(folder)) for folder in pair}
    stored = manifests(root / name)
    assert {made for _, made in made_from} == {f"artifacts/{made}" for made in stored}
    for artifact, manifest in stored.items():
        node = (f"file://{root / name}", f"artifacts/{artifact}")
        parents = {(node[0], f"artifacts/{parent}") for parent in manifest["parents"]}
        assert made_from[node] - checkpoints == parents
        assert made_from[node] & checkpoints
    found, front = set(), {(f"file://{root / name}", f"artifacts/{json.loads(runs[name].stdout)['artifact']}")}
    while front:
        found |= front
        front = {parent for node in front for parent in made_from.get(node, ())} - found
    assert found == {*made_from, *checkpoints}


def test_the_flow_run_makes_the_delta_from_the_checkpoints(
    events: dict[str, list[Event]], runs: dict[str, CompletedProcess[str]], pair: tuple[Path, Path]
) -> None:
    report = json.loads(runs["http"].stdout)
    end = events["http"][-1]
    assert (end["job"]["name"], end["eventType"]) == ("compress", "COMPLETE")
    assert [found["name"] for found in end["inputs"]] == [str(folder) for folder in pair]
    (delta,) = end["outputs"]
    assert delta["name"] == f"artifacts/{report['artifact']}"
    facet = delta["facets"]["impart_artifact"]
    assert (facet["kind"], facet["bytes"], facet["cached"]) == ("delta", report["bytes"], False)


def test_the_key_goes_to_the_receiver_and_nowhere_else(
    receiver: Receiver, runs: dict[str, CompletedProcess[str]]
) -> None:
    assert {(path, key) for path, key, _ in receiver.requests} == {("/api/v1/lineage", f"Bearer {KEY}")}
    for run in runs.values():
        assert KEY not in run.stdout + run.stderr


def test_a_receiver_that_does_not_answer_changes_nothing_but_the_count(
    runs: dict[str, CompletedProcess[str]],
) -> None:
    assert runs["dead"].returncode == 0
    assert without_notes(runs["dead"].stderr) == ""
    report, expected = json.loads(runs["dead"].stdout), json.loads(runs["file"].stdout)
    assert report["artifact"] == expected["artifact"]
    assert (report["events_sent"], report["events_lost"]) == (0, 2 * (sum(KINDS.values()) + 1))


def test_the_run_page_has_one_warning_of_a_receiver_that_does_not_answer(
    runs: dict[str, CompletedProcess[str]],
) -> None:
    with get_client(sync_client=True) as client:
        found = client.request("POST", "/logs/filter", json={"logs": {"level": {"ge_": 30}}}).json()
    (warning,) = (entry["message"] for entry in found if "OpenLineage" in entry["message"])
    assert "did not take them in time" in warning
    assert all(KEY not in entry["message"] for entry in found)


@pytest.fixture(scope="module")
def zoo_events(root: Path, pair: tuple[Path, Path], environment: Environment) -> list[list[Event]]:
    """The events of a zoo's run with a model that fails, and of another one that works on the good one again."""
    content = {
        "zoo": "night",
        "recipes": {"default": {"steps": [{"method": "lowrank", "cr": 4}]}},
        "models": [
            {"name": "good", "base": str(pair[0]), "finetuned": str(pair[1])},
            {"name": "bad", "base": str(pair[0]), "finetuned": str(root / "not-there")},
        ],
    }
    (root / "zoo.yaml").write_text(json.dumps(content))
    found = []
    for number, more in enumerate([["--only", "*"], ["--only", "good", "--again"]]):
        target = {"type": "file", "log_file_path": str(root / f"zoo-{number}"), "append": True}
        done = run_impart(
            *("zoo", "run", str(root / "zoo.yaml"), *more, "--store", str(root / "zoo"), "--json"),
            environment={**environment, "OPENLINEAGE__TRANSPORT": json.dumps(target)},
        )
        assert done.returncode == (2 if number == 0 else 0), done.stderr
        found.append([json.loads(line) for line in (root / f"zoo-{number}").read_text().splitlines()])
    return found


def test_each_entry_of_a_zoo_is_a_job_that_starts_and_ends(zoo_events: list[list[Event]]) -> None:
    first, again = zoo_events
    steps: dict[str, list[str]] = {}
    for event in first:
        steps.setdefault(event["job"]["name"], []).append(event["eventType"])
    assert steps == {
        "zoo": ["START", "COMPLETE"],
        "night.good": ["START", "COMPLETE"],
        "night.bad": ["START", "FAIL"],
    }
    assert [event["job"]["name"] for event in again] == ["zoo", "night.good", "night.good", "zoo"]
    for event in first:
        if event["job"]["name"] != "zoo":
            assert event["run"]["facets"]["parent"]["job"]["name"] == "zoo"
    (failed,) = (event for event in first if event["eventType"] == "FAIL")
    assert "not-there" in failed["run"]["facets"]["errorMessage"]["message"]


def test_what_an_entry_reads_and_makes_has_the_same_names_every_night(
    zoo_events: list[list[Event]], pair: tuple[Path, Path], root: Path
) -> None:
    ends = [
        next(event for event in events if event["job"]["name"] == "night.good" and event["eventType"] == "COMPLETE")
        for events in zoo_events
    ]
    for end in ends:
        assert [(found["namespace"], found["name"]) for found in end["inputs"]] == [("file", str(one)) for one in pair]
        delta, name = end["outputs"]
        assert (name["namespace"], name["name"]) == (f"file://{root / 'zoo'}", "refs/good@prod")
        assert f"artifacts/{name['facets']['version']['datasetVersion']}" == delta["name"]
    assert [one["name"] for one in ends[0]["outputs"]] == [one["name"] for one in ends[1]["outputs"]]
    assert [one["outputs"][0]["facets"]["impart_artifact"]["cached"] for one in ends] == [False, True]
    assert [one["name"] for one in zoo_events[0][-1]["outputs"]] == ["refs/good@prod"]


def test_events_of_a_zoo_are_valid(zoo_events: list[list[Event]]) -> None:
    schemas = json.loads((VECTORS / "openlineage.json").read_text())["schemas"]
    registry = Registry().with_resources([(schema["$id"], Resource.from_contents(schema)) for schema in schemas])
    for event in (event for events in zoo_events for event in events):
        for part in [event, *event["run"]["facets"].values(), *event["job"]["facets"].values()]:
            where = part.get("schemaURL") or part["_schemaURL"]
            if where.partition("#")[0] in registry:
                jsonschema.Draft202012Validator({"$ref": where}, registry=registry).validate(part)


def test_a_run_that_fails_is_told_without_secrets(
    prefect_api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = {"type": "file", "log_file_path": str(tmp_path / "events"), "append": True}
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT", json.dumps(target))

    @flow(name="tried")
    def tried() -> None:
        with observed_run():
            raise ConfigError(f"ftp://me:{KEY}@host/a is wrong")

    with pytest.raises(ConfigError):
        tried()
    text = (tmp_path / "events").read_text()
    found = [json.loads(line) for line in text.splitlines()]
    assert [(event["job"]["name"], event["eventType"]) for event in found] == [("tried", "START"), ("tried", "FAIL")]
    assert found[1]["run"]["facets"]["errorMessage"]["message"] == "ConfigError: ftp://host/a is wrong"
    assert KEY not in text
    assert os.environ.get("OPENLINEAGE__TRANSPORT")  # what the user set is left as it was
