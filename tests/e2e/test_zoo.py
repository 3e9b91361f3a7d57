"""`impart zoo`: a file is checked, planned, run, told of, and fired by its schedule on a server with a worker."""

import json
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from prefect.settings import PREFECT_API_URL, temporary_settings

from impart_core import tinyzoo
from impart_core.artifacts.zoo_run import last_zoo_run
from impart_core.store.names import get_ref
from impart_core.store.store import Store
from impart_core.zoo.record import ZooRun
from impart_flows.watchdog import HEARTBEAT_SECONDS, set_watchdog
from tests.e2e.here import printed, told
from tests.e2e.prefect_api import PATIENCE, Api, wait_for
from tests.servers import has_postgres, persistent_prefect, postgres_server
from tests.support import Environment, run_impart, run_json
from tests.workers import kill_session, worker

pytestmark = pytest.mark.e2e

BASE, MATH = str(tinyzoo.path("base")), str(tinyzoo.path("math"))


def write_zoo(folder: Path, **own: Any) -> Path:
    """Write a zoo of one model that is quick to compress, and of one that is not there."""
    models = [
        {"name": "math", "base": BASE, "finetuned": MATH, "owner": "nlp"},
        {"name": "gone", "base": BASE, "finetuned": "./gone"},
    ]
    recipes = {"default": {"steps": [{"method": "lowrank", "cr": 32, "options": {}}]}}
    path = folder / "zoo.yaml"
    path.write_text(yaml.safe_dump({"zoo": "team", "store": "./store", "recipes": recipes, "models": models, **own}))
    return path


def test_a_zoo_is_planned_run_and_told_of(environment: Environment, tmp_path: Path) -> None:
    file = write_zoo(tmp_path)
    planned = run_impart("zoo", "plan", str(file), "--json", environment=environment)
    assert planned.returncode == 2, planned.stderr  # one entry cannot be worked on
    plan = json.loads(planned.stdout)
    assert [one["work"] for one in plan["entries"]] == [True, True]
    assert not list((tmp_path / "store").glob("artifacts/*"))
    done = run_impart("zoo", "run", str(file), "--json", environment=environment)
    assert done.returncode == 2, done.stderr
    run = json.loads(done.stdout)
    assert {one["name"]: one["status"] for one in run["outcomes"]} == {"math": "promoted", "gone": "failed"}
    store = Store(str(tmp_path / "store"))
    assert get_ref(store, "math@prod") == run["outcomes"][0]["artifact"]
    again = run_json("zoo", "run", str(file), "--only", "math", environment=environment)
    assert [one["status"] for one in again["outcomes"]] == ["unchanged", "left out"]
    assert told("zoo", "status", str(file))["run"] == again["run"]
    shown = printed("zoo", "report", str(file))
    assert "| math | unchanged | nlp | lowrank at CR 32 |" in shown
    assert "gone" in shown
    printed("zoo", "report", str(file), "--out", str(tmp_path / "report.html"))
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert "1 promoted" in printed("ls", "--store", store.url)


def test_the_published_schema_is_that_of_the_program_and_fits_a_file(tmp_path: Path) -> None:
    schema = json.loads(printed("zoo", "schema"))
    published = Path(__file__).parents[2] / "docs" / "zoo.schema.json"
    assert json.loads(published.read_text()) == schema, "write it again: impart zoo schema > docs/zoo.schema.json"
    jsonschema.validate(yaml.safe_load(write_zoo(tmp_path).read_text()), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"zoo": "team", "modles": []}, schema)


@pytest.fixture
def server(tmp_path: Path, environment: Environment) -> Iterator[Environment]:
    """The variables of a Prefect server on PostgreSQL."""
    with postgres_server() as database, persistent_prefect(tmp_path / "prefect", database.variables) as variables:
        yield {**environment, **variables}


def deploy(file: Path, server: Environment, process: subprocess.Popen[bytes], log: Path) -> None:
    """Deploy a zoo once the worker has made its pool."""
    deadline = time.monotonic() + PATIENCE
    while True:
        done = run_impart("zoo", "deploy", str(file), "--pool", "models", "--json", environment=server)
        if done.returncode == 0:
            assert json.loads(done.stdout)["cron"] == "* * * * *"
            return
        assert "There is no work pool" in done.stderr, done.stderr
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()


def a_night(folder: Path) -> Path:
    """Write a zoo with one model of each kind, and a merge; `math` is brought up to date by the test beforehand."""
    gate = {"tasks": {"tinyzoo_code": "answer_loss"}, "errors": 0, "limit": 4, "loses": 0.01}
    recipes = {
        "default": {"steps": [{"method": "lowrank", "cr": 32}]},
        "gated": {"steps": [{"method": "lowrank", "cr": 64}, {"method": "lowrank", "cr": 2}], "gate": gate},
    }
    models = [
        {"name": "math", "base": BASE, "finetuned": MATH, "owner": "nlp"},
        {"name": "gone", "base": BASE, "finetuned": "./gone"},
        {"name": "chat", "base": BASE, "finetuned": str(tinyzoo.path("chat"))},
        {"name": "code", "base": BASE, "finetuned": str(tinyzoo.path("code")), "recipe": "gated"},
    ]
    sources = [{"model": model["finetuned"], "parameters": {"weight": 0.5}} for model in (models[0], models[2])]
    merge = {"merge_method": "task_arithmetic", "base_model": BASE, "models": sources}
    both = {"name": "both", "merge": {**merge, "impart": {"compress": {"method": "lowrank", "cr": 16}}}}
    return write_zoo(folder, recipes=recipes, models=models, merges=[both], schedule={"cron": "* * * * *"})


def assert_told(file: Path) -> None:
    """Check that the report says of each entry what became of it, and of what failed how to go on."""
    report = told("zoo", "report", str(file))
    outcomes = {one["name"]: one for one in report["outcomes"]}
    assert [one["passed"] for one in outcomes["code"]["attempts"]] == [False, True]
    for outcome in (outcomes[name] for name in ("math", "chat", "code", "both")):
        assert outcome["attempts"][-1]["cr_model"] > 1
        assert 0 < outcome["bytes_after"] < outcome["bytes_before"]
        assert outcome["seconds"] > 0
    shown = printed("zoo", "report", str(file))
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in shown.splitlines() if line.startswith("| ")}
    assert "lowrank at CR 2" in rows["code"]
    assert "tinyzoo_code" in rows["code"]
    assert "task_arithmetic of 2 models" in rows["both"]
    assert "**gone** failed: " in shown
    assert "does not exist" in shown


@pytest.mark.skipif(not has_postgres(), reason="PostgreSQL is not installed")
def test_a_night_is_run_by_its_schedule_and_what_a_killed_worker_leaves_is_closed(
    server: Environment, tmp_path: Path
) -> None:
    log, api = tmp_path / "worker.log", Api(str(server["PREFECT_API_URL"]))
    file = a_night(tmp_path)
    store = Store(str(tmp_path / "store"))
    missing = run_impart("zoo", "deploy", str(file), "--pool", "none-such", environment=server)
    assert missing.returncode == 2
    assert "There is no work pool 'none-such'" in missing.stderr
    by_hand = run_json("zoo", "run", str(file), "--only", "math", environment=server)["run"]
    with worker("models", server, log) as process:
        wait_for(lambda: 2 < time.time() % 60 < 25, process, log)  # the server has to know what to watch by then
        deploy(file, server, process, log)
        with temporary_settings({PREFECT_API_URL: str(server["PREFECT_API_URL"])}):
            set_watchdog(timedelta(seconds=HEARTBEAT_SECONDS + 10))
        wait_for(lambda: api.beating() & api.states().keys(), process, log)
        kill_session(process)
        killed = datetime.now(UTC).isoformat()
        left = {run for run, state in api.states().items() if state == "RUNNING"} & api.beating()
    assert left, "it was over before it could be killed"
    nights: dict[str, ZooRun] = {}

    def finished() -> bool:
        run = last_zoo_run(store, "team")
        if run is not None and run.run != by_hand:
            if not nights:
                assert_told(file)
            nights[run.run] = run
        return len(nights) == 2  # it fires again, and then nothing has changed

    with worker("models", server, log) as process:
        wait_for(lambda: {api.states()[run] for run in left} == {"CRASHED"}, process, log)
        wait_for(finished, process, log)
    first, second = ({one.name: one.status for one in run.outcomes} for run in nights.values())
    assert first == dict.fromkeys(("chat", "code", "both"), "promoted") | {"math": "unchanged", "gone": "failed"}
    assert second == dict.fromkeys(("math", "chat", "code", "both"), "unchanged") | {"gone": "failed"}
    assert not left & nights.keys()
    runs_left = api.post("/flow_runs/filter", sort="EXPECTED_START_TIME_ASC")
    begun = {run["id"]: run["state_type"] for run in runs_left if run["start_time"] and run["end_time"] is None}
    assert set(begun.values()) <= {"RUNNING"}
    assert all(run["start_time"] > killed for run in runs_left if run["id"] in begun), begun


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"models": [{"name": "m", "base": BASE, "finetuned": MATH, "recipe": "smal"}]}, "Unknown recipe 'smal'"),
        ({"schedule": {"cron": "0 0 31 2 *"}}, "never fires"),
        ({"modles": []}, "Did you mean 'models'?"),
    ],
)
def test_bad_files_are_a_sentence(own: dict[str, Any], said: str, tmp_path: Path) -> None:
    done = run_impart("zoo", "run", str(write_zoo(tmp_path, **own)))
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "store").exists()
