"""MLflow as a target: a real server from PyPI holds pointers, metrics and tags, each once, and never a weight."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from impart_core import tinyzoo
from impart_core.artifacts.delta import open_delta
from impart_core.base.errors import ConfigError
from impart_core.store.names import resolve, set_ref
from impart_core.store.store import Store
from impart_core.zoo.record import Outcome, ZooRun
from impart_flows.mlflow import TrackingError, push, push_run
from tests.impart_core.pipeline import compress, config_of
from tests.impart_core.store.samples import evaluation_of
from tests.own_env import python_or_skip
from tests.servers import free_ports

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

VERSION = "3.17.2"
START_SECONDS = 240


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real tracking server, with a database of its own."""
    python = python_or_skip(f"mlflow=={VERSION}")
    home, port = tmp_path_factory.mktemp("mlflow"), free_ports(1)
    words = [python.with_name("mlflow"), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    places = ["--backend-store-uri", f"sqlite:///{home}/db.sqlite", "--artifacts-destination", str(home / "artifacts")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "MLFLOW"))}
    with (home / "log").open("w") as log:
        process = subprocess.Popen(
            [*words, *places], cwd=home, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, 9)
            process.wait()


def wait_for(address: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            if httpx.get(address, timeout=5).is_success:
                return
        except httpx.HTTPError:
            pass
        assert process.poll() is None, "the tracking server ended"
        assert time.monotonic() < deadline, "the tracking server does not answer"
        time.sleep(0.5)


@pytest.fixture
def address(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The server, set as the one to use."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    return server


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with a delta that is named and measured, as its model is."""
    store = Store(tmp_path_factory.mktemp("tracked") / "store")
    delta = compress(store, tinyzoo.path("base"), tinyzoo.path("math"), config_of(16, method="lowrank"))
    set_ref(store, "math@prod", delta.id)
    evaluation_of(store, {"delta": delta.id}, (delta.id,), {"exact_match": (0.75, 0.1)}, task="sums")
    evaluation_of(store, {"checkpoint": delta.content.finetuned}, (), {"exact_match": (1.0, None)}, task="sums")
    return store


def ask(address: str, what: str, **about: Any) -> dict[str, Any]:
    method = "POST" if what.endswith("runs/search") else "GET"
    given: dict[str, Any] = {"json" if method == "POST" else "params": about}
    answer = httpx.request(method, f"{address}/api/2.0/mlflow/{what}", timeout=60, **given)
    assert answer.is_success, answer.text
    return dict(answer.json())


def runs_of(address: str, experiment: str) -> list[dict[str, Any]]:
    found = ask(address, "experiments/get-by-name", experiment_name=experiment)
    runs = ask(address, "runs/search", experiment_ids=[found["experiment"]["experiment_id"]]).get("runs", [])
    return list(runs)


def versions_of(address: str, model: str) -> list[dict[str, Any]]:
    return list(ask(address, "model-versions/search", filter=f"name='{model}'").get("model_versions", []))


def test_a_push_registers_a_pointer_with_settings_quality_and_ids(address: str, zoo: Store) -> None:
    made = push(zoo, "math@prod", resolve(zoo, "math@prod"), "first")
    delta = open_delta(zoo, resolve(zoo, "math@prod"))
    (run,) = runs_of(address, "first")
    assert run["info"]["status"] == "FINISHED"
    params = {one["key"]: one["value"] for one in run["data"]["params"]}
    assert (params["method"], float(params["cr"])) == ("lowrank", 16)
    metrics = {one["key"]: one["value"] for one in run["data"]["metrics"]}
    assert metrics["bytes"] == delta.bytes
    assert metrics["cr_model"] == pytest.approx(delta.cr_model)
    assert metrics["after/sums/exact_match"] == 0.75
    assert metrics["after/sums/exact_match_stderr"] == 0.1
    assert metrics["before/sums/exact_match"] == 1
    tags = {one["key"]: one["value"] for one in run["data"]["tags"]}
    assert (tags["impart.artifact"], tags["impart.base"]) == (delta.id, delta.content.base)
    assert tags["impart.ref"] == "math@prod"
    (version,) = versions_of(address, "math")
    assert (version["version"], version["run_id"]) == (made.version, run["info"]["run_id"])
    assert version["source"] == f"impart://artifacts/{delta.id}"
    assert ask(address, "registered-models/alias", name="math", alias="prod")["model_version"]["version"] == "1"
    listed = ask(address, "artifacts/list", run_id=run["info"]["run_id"])
    assert listed.get("files", []) == []  # no weights, nor anything else


def test_pushing_twice_makes_nothing_twice_and_tells_what_was_measured_since(address: str, zoo: Store) -> None:
    artifact = resolve(zoo, "math@prod")
    push(zoo, "math@prod", artifact, "twice")
    evaluation_of(zoo, {"delta": artifact}, (artifact,), {"exact_match": (0.5, None)}, task="later")
    again = push(zoo, "math@prod", artifact, "twice")
    assert not again.created
    (run,) = runs_of(address, "twice")
    assert {one["key"]: one["value"] for one in run["data"]["metrics"]}["after/later/exact_match"] == 0.5
    assert len(versions_of(address, "math")) == 1


def run_of(zoo: Store) -> ZooRun:
    outcomes = tuple(
        Outcome(name=name, kind="model", status=status, ref=f"{name}@prod", artifact=resolve(zoo, "math@prod"))
        for name, status in (("night", "promoted"), ("same", "unchanged"), ("bad", "failed"))
    )
    return ZooRun(zoo="z", run="r", started="", seconds=1, store=zoo.url, outcomes=outcomes)


def test_a_run_of_the_zoo_registers_what_it_promoted(address: str, zoo: Store) -> None:
    assert push_run(run_of(zoo), zoo, "nightly") == ""
    assert [len(versions_of(address, name)) for name in ("night", "same", "bad")] == [1, 0, 0]


@contextmanager
def silent() -> Iterator[str]:
    """A server that takes connections and answers none."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_server_that_is_down_is_told_and_loses_nothing(zoo: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{free_ports(1)}")
    told = push_run(run_of(zoo), zoo, "nightly")
    assert told.startswith("Not registered with MLflow: night@prod. The tracking server of MLFLOW_TRACKING_URI did not")
    assert "`impart mlflow push NAME` does it later" in told
    assert "secret" not in told
    with silent() as address, pytest.raises(TrackingError, match="Timeout"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.setattr("impart_flows.mlflow._SECONDS", 0.5)
        push(zoo, "math@prod", resolve(zoo, "math@prod"))


@pytest.mark.parametrize("address", ["", "databricks", "sqlite:///mlflow.db", "./mlruns"])
def test_what_is_no_server_is_refused_before_anything_is_asked(
    address: str, zoo: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(ConfigError, match=r"MLFLOW_TRACKING_URI is .* Give the address of a tracking server"):
        push(zoo, "math@prod", resolve(zoo, "math@prod"))
