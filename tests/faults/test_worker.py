"""A Prefect process worker that is killed with the run that it serves; the next worker's run goes on from there."""

import json
import subprocess
import time
import uuid
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Wanted
from tests.faults.places import Place, assert_whole, manifests_in
from tests.faults.tally import Tally
from tests.faults.warm import run_warm
from tests.support import halt_when
from tests.workers import kill_session, signal_session, worker

pytestmark = pytest.mark.faults

Pair = tuple[Path, Path]
ROOT = Path(__file__).parents[2]
DEADLINE_SECONDS = 60


def deploy(pool: str, request: dict[str, Any]) -> str:
    """Make a deployment of the compress flow from this source tree; return its name."""
    from prefect import flow

    from impart_flows.compress import compress

    flow.from_source(source=str(ROOT), entrypoint="flows/compress.py:compress").deploy(
        name=pool, work_pool_name=pool, parameters={"request": request}, print_next_steps=False, ignore_warnings=True
    )
    return f"{compress.name}/{pool}"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes under /proc")
def test_a_run_of_a_killed_worker_is_taken_up_by_the_next(
    large_pair: Pair, wanted_large: Wanted, in_folder: Place, tmp_path: Path, count: Tally
) -> None:
    from prefect.deployments import run_deployment

    pool, place, log = f"pool-{uuid.uuid4().hex[:8]}", in_folder, tmp_path / "worker.log"
    base, finetuned = map(str, large_pair)
    places = {"base": base, "finetuned": finetuned, "store": place.url}
    request = {**places, "config": {"cr": 4}, "name": "served", "workers": 1}
    with worker(pool, place.environment, log) as first:
        name = wait_for_pool(pool, request, first, log)
        run_deployment(name, timeout=0)
        halt_when(
            lambda: len(manifests_in(place.objects(), "block")) >= 3,
            partial(signal_session, first),
            lambda: first.poll() is None,
        )
        kill_session(first)
    count("workers killed")
    before = place.written()
    finished = set(manifests_in(place.objects()))
    assert len(finished) < 18, "it was over before it could be killed; the model must be larger"
    with worker(pool, place.environment, log):
        run = run_deployment(name, timeout=DEADLINE_SECONDS, poll_interval=0.5)
        assert run.state, log.read_text()
        assert run.state.is_completed(), (run.state, log.read_text())
    written = place.written()
    kept = {
        path: when for path, when in before.items() if path.startswith("artifacts/") and path.split("/")[1] in finished
    }
    assert kept.items() <= written.items()
    assert_whole(place, wanted_large)
    verified = run_warm("verify", "served", "--store", place.url, "--json", environment=place.environment)
    assert json.loads(verified.stdout)["ok"]


def wait_for_pool(pool: str, request: dict[str, Any], process: subprocess.Popen[bytes], log: Path) -> str:
    """Deploy once the worker has made its pool; return the deployment's name."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        try:
            return deploy(pool, request)
        except ValueError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
