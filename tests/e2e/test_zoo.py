"""`impart zoo`: a file is checked, planned, run, told of, and fired by its schedule on a server with a worker."""

import json
import time
import uuid
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from impart_core import tinyzoo
from impart_core.artifacts.zoo_run import last_zoo_run
from impart_core.store.names import get_ref
from impart_core.store.store import Store
from tests.e2e.here import printed, told
from tests.support import Environment, run_impart, run_json
from tests.workers import worker

pytestmark = pytest.mark.e2e

BASE, MATH = str(tinyzoo.path("base")), str(tinyzoo.path("math"))
PATIENCE = 240


def write_zoo(folder: Path, **own: Any) -> Path:
    """Write a zoo of one model that is quick to compress, and of one that is not there."""
    models = [
        {"name": "math", "base": BASE, "finetuned": MATH, "owner": "nlp"},
        {"name": "gone", "base": BASE, "finetuned": "nowhere/gone"},
    ]
    recipes = {"default": {"steps": [{"method": "lowrank", "cr": 32, "options": {}}]}}
    path = folder / "zoo.yaml"
    path.write_text(yaml.safe_dump({"zoo": "team", "store": "./store", "recipes": recipes, "models": models, **own}))
    return path


def test_a_zoo_is_planned_run_and_told_of(environment: Environment, tmp_path: Path) -> None:
    file = write_zoo(tmp_path)
    plan = told("zoo", "plan", str(file))
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
    schema = told("zoo", "schema")
    published = Path(__file__).parents[2] / "docs" / "zoo.schema.json"
    assert json.loads(published.read_text()) == schema, "write it again: impart zoo schema > docs/zoo.schema.json"
    jsonschema.validate(yaml.safe_load(write_zoo(tmp_path).read_text()), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"zoo": "team", "modles": []}, schema)


def test_a_zoo_is_run_by_its_schedule(environment: Environment, tmp_path: Path) -> None:
    pool, log = f"zoo-{uuid.uuid4().hex[:8]}", tmp_path / "worker.log"
    file = write_zoo(tmp_path, zoo=pool, schedule={"cron": "* * * * *"})
    store = Store(str(tmp_path / "store"))
    missing = run_impart("zoo", "deploy", str(file), "--pool", "none-such", environment=environment)
    assert missing.returncode == 2
    assert "There is no work pool 'none-such'" in missing.stderr
    with worker(pool, environment, log) as process:
        deadline = time.monotonic() + PATIENCE
        while True:  # until the worker has made its pool
            done = run_impart("zoo", "deploy", str(file), "--pool", pool, "--json", environment=environment)
            if done.returncode == 0:
                break
            assert "There is no work pool" in done.stderr, done.stderr
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
        assert json.loads(done.stdout)["cron"] == "* * * * *"
        runs = set()
        while len(runs) < 2:  # it fires again, and then nothing has changed
            run = last_zoo_run(store, pool) if store.objects.exists() else None
            if run is not None:
                runs.add(run.run)
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
    assert run is not None
    assert {one.name: one.status for one in run.outcomes} == {"math": "unchanged", "gone": "failed"}


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
