"""infra/prefect.yaml and the pools are taken by a real server, runs of them complete, and limits hold."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.deployments import run_deployment
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Crashed, Running

from impart_core import tinyzoo
from impart_core.store.names import get_ref
from impart_core.store.store import Store
from impart_flows.gpu_limit import DEFAULT_NAME, LEASE, VARIABLE, free_lost_slots
from tests.e2e.prefect_api import Api, wait_for
from tests.servers import INFRA, persistent_prefect, run_script
from tests.support import Environment, halt_when, run_impart, run_json
from tests.workers import kill_session, signal_session, worker

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
BASE, MATH = str(tinyzoo.path("base")), str(tinyzoo.path("math"))
KINDS = ("process", "kubernetes")
QUICK = {
    "PREFECT_SERVER_SERVICES_REPOSSESSOR_LOOP_SECONDS": "1",
    "PREFECT_SERVER_CONCURRENCY_MAXIMUM_CONCURRENCY_SLOT_WAIT_SECONDS": "1",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, environment: Environment) -> Iterator[Environment]:
    """The variables of a Prefect server of this file's own."""
    with persistent_prefect(tmp_path_factory.mktemp("prefect"), QUICK) as variables:
        yield {**environment, **variables, "PREFECT_LOGGING_LEVEL": "INFO"}


@pytest.fixture
def api(server: Environment) -> Iterator[Api]:
    """That server's API; clients in this process use it, too."""
    url = str(server["PREFECT_API_URL"])
    with temporary_settings({PREFECT_API_URL: url}):
        yield Api(url)


def run_prefect(environment: Environment, *arguments: str) -> str:
    """Run Prefect's own command line, which must succeed, and return what it prints."""
    merged = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    done = subprocess.run(command, env=merged, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def _deployed(server: Environment) -> None:
    """Make a pool of each kind from its template in git, and all deployments for the one of processes."""
    for kind in KINDS:
        template = str(INFRA / "pools" / f"{kind}.json")
        run_prefect(server, "work-pool", "create", kind, "--type", kind, "--base-job-template", template)
    places = {"IMPART_POOL": "process", "IMPART_BASE": BASE, "IMPART_MODELS": str(Path(MATH).parent)}
    run_prefect({**server, **places}, "deploy", "--all", "--prefect-file", "infra/prefect.yaml")


def slots_held(api: Api) -> int:
    """Return how many slots of the limit are taken."""
    return int(api.get(f"/v2/concurrency_limits/{DEFAULT_NAME}")["active_slots"])


@flow(name="compress")
def holding() -> None:
    """Stand for a flow whose runs hold slots."""


def test_lost_slots_are_freed_and_others_are_not(server: Environment, api: Api) -> None:
    """It comes first: runs that ended within the last minutes count as well."""
    run_json("zoo", "setup", "--gpus", "3", environment=server)
    with get_client(sync_client=True) as client:
        client.increment_concurrency_slots([DEFAULT_NAME], 2, "concurrency")
        assert slots_held(api) == 2
        run = client.create_flow_run(holding, name="at work")
        client.set_flow_run_state(run.id, Running(), force=True)
    assert free_lost_slots(DEFAULT_NAME) == 1
    assert slots_held(api) == 1
    with get_client(sync_client=True) as client:  # it may have died just now, with a lease that is still there
        client.set_flow_run_state(run.id, Crashed(), force=True)
        assert free_lost_slots(DEFAULT_NAME) == 0
        client.delete_flow_run(run.id)
    assert run_json("zoo", "setup", "--gpus", "1", environment=server)["slots"] == {
        "name": DEFAULT_NAME,
        "limit": 1,
        "held": 0,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_pools_are_taken_as_they_stand_in_git(kind: str, api: Api) -> None:
    template = json.loads((INFRA / "pools" / f"{kind}.json").read_text())
    assert api.get(f"/work_pools/{kind}")["base_job_template"] == template


def test_all_deployments_are_made_for_the_pool(api: Api) -> None:
    made = api.post("/deployments/filter")
    flows = ("compress", "evaluate", "merge", "search", "zoo")
    assert {one["entrypoint"] for one in made} == {f"impart_flows.{flow}.{flow}" for flow in flows}
    assert all(one["tags"] == ["impart"] and not one["pull_steps"] for one in made)
    assert {one["work_pool_name"] for one in made} == {"process"}
    (nightly,) = (one for one in made if one["schedules"])
    assert nightly["schedules"][0]["schedule"]["cron"] == "0 2 * * *"
    assert nightly["global_concurrency_limit"]["limit"] == 1
    assert nightly["parameters"]["request"]["zoo"]["models"][0]["base"] == BASE


def request_of(store: Path, name: str, **config: Any) -> str:
    """Return the parameter of a compression of the tiny zoo's math model."""
    request = {"base": BASE, "finetuned": MATH, "store": str(store), "name": name, "config": config}
    return f"request={json.dumps(request)}"


def test_a_deployment_runs_with_a_methods_options_as_parameters(server: Environment, api: Api, tmp_path: Path) -> None:
    asked = partial(request_of, tmp_path / "store", "math@cr32")
    watched = ("--watch", "--watch-interval", "1")
    with worker("process", server, tmp_path / "worker.log"):
        options = {"beta": 0.5, "allocation": "uniform"}
        taken = asked(cr=32, method="impart", options=options)
        run_prefect(server, "deployment", "run", "compress/process", "--param", taken, *watched)
        wrong = asked(cr=32, method="impart", options={"betta": 0.5})
        with pytest.raises(AssertionError, match="betta"):
            run_prefect(server, "deployment", "run", "compress/process", "--param", wrong, *watched)
    store = Store(str(tmp_path / "store"))
    made = store.lookup(str(get_ref(store, "math@cr32")))
    assert made is not None
    assert {**made.recipe.config["options"], **options} == made.recipe.config["options"]


def holders(api: Api, phase: str) -> dict[str, datetime]:
    """Return when each run acquired, or released, a slot of the limit, as it told the server."""
    limit = f"prefect.concurrency-limit.{api.get(f'/v2/concurrency_limits/{DEFAULT_NAME}')['id']}"
    return {
        related["prefect.resource.id"].removeprefix("prefect.flow-run."): datetime.fromisoformat(event["occurred"])
        for event in api.events(f"prefect.concurrency-limit.{phase}")
        if event["resource"]["prefect.resource.id"] == limit
        for related in event["related"]
        if related["prefect.resource.role"] == "flow-run"
    }


def test_a_limit_holds_though_its_worker_is_killed_and_the_server_restarted(
    server: Environment, api: Api, tmp_path: Path
) -> None:
    run_json("zoo", "setup", "--gpus", "1", environment=server)
    held, log = partial(slots_held, api), tmp_path / "worker.log"
    limited = {**server, VARIABLE: DEFAULT_NAME, LEASE: "60"}

    def waiting(name: str, process: subprocess.Popen[bytes]) -> str:
        """Start a run on the worker that is there, or is not stopped, and return it once it waits."""
        request = json.loads(request_of(tmp_path / name, "math", cr=32).removeprefix("request="))
        run = str(run_deployment("compress/process", parameters={"request": request}, timeout=0).id)
        wait_for(lambda: "waits for one" in api.logged(run), process, log)
        return run

    with get_client(sync_client=True) as client:
        client.increment_concurrency_slots([DEFAULT_NAME], 1, "concurrency")
        with worker("process", limited, log) as first:
            killed = waiting("first", first)
            signal_session(first, signal.SIGSTOP)
            with worker("process", limited, log) as second:
                later = waiting("second", second)
                signal_session(second, signal.SIGSTOP)
                freed = datetime.now(UTC)
                client.release_concurrency_slots([DEFAULT_NAME], 1, occupancy_seconds=1)
                signal_session(first, signal.SIGCONT)
                halt_when(lambda: held() == 1, partial(signal_session, first), lambda: first.poll() is None)
                kill_session(first)
                signal_session(second, signal.SIGCONT)
                places = {
                    "PREFECT_DEV_HOME": str(server["PREFECT_HOME"]),
                    "PREFECT_PORT": str(urlsplit(str(client.api_url)).port),
                }
                for verb in ("stop", "start"):
                    run_script(INFRA / "prefect-server", verb, {**os.environ, **places, **QUICK})
                wait_for(lambda: api.states()[later] == "COMPLETED", second, log)
                # The server writes events down some time after they happen.
                wait_for(lambda: later in holders(api, "acquired"), second, log)
                wait_for(lambda: later in holders(api, "released"), second, log)
    assert holders(api, "released").keys() == {later}
    acquired = holders(api, "acquired")
    assert acquired.keys() <= {killed, later}
    assert acquired[later] >= freed + timedelta(seconds=60)  # the killed run's lease
    assert held() == 0


@pytest.mark.parametrize("verb", ["compress", "zoo"])
def test_a_limit_that_is_not_there_is_a_sentence_before_any_work(
    verb: str, server: Environment, tmp_path: Path
) -> None:
    environment = {**server, VARIABLE: "none-such"}
    store = ["--store", str(tmp_path / "store")]
    file = tmp_path / "zoo.yaml"
    model = {"name": "math", "base": BASE, "finetuned": MATH}
    recipe = {"steps": [{"method": "lowrank", "cr": 32}]}
    file.write_text(json.dumps({"models": [model], "recipes": {"default": recipe}}))
    command = {"compress": ["compress", BASE, MATH, "--cr", "32"], "zoo": ["zoo", "run", str(file)]}[verb]
    done = run_impart(*command, *store, environment=environment)
    assert done.returncode == 2
    assert "no such limit. Make it: IMPART_GPU_LIMIT=none-such impart zoo setup --gpus N." in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "store").glob("artifacts/*"))
    if verb == "compress":  # the CPU is nobody's to wait for
        run_json(*command, *store, "--device", "cpu", environment=environment)
