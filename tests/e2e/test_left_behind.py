"""What killed processes and a killed server leave behind is closed or freed by a real server, or by the next run."""

import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.responses import SetStateStatus
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Crashed, Pending, Running
from prefect.types.entrypoint import EntrypointType

from impart_flows import gpu_limit
from impart_flows.gpu_limit import DEFAULT_NAME, VARIABLE, gpu_slot, set_limit
from impart_flows.watchdog import TAG, close_earlier_runs, set_watchdog
from tests.e2e.prefect_api import Api, until
from tests.servers import PrefectServer, persistent_prefect
from tests.support import halt_when, start_impart

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A Prefect server of this file's own, which clients in this process use."""
    quick = {"PREFECT_SERVER_CONCURRENCY_MAXIMUM_CONCURRENCY_SLOT_WAIT_SECONDS": "1"}
    with persistent_prefect(tmp_path_factory.mktemp("prefect"), quick) as variables:
        url = variables["PREFECT_API_URL"]
        with temporary_settings({PREFECT_API_URL: url}):
            yield Api(url)


@flow(name="compress")
def held_for_a_moment() -> str:
    """Stand for work that takes a slot."""
    with gpu_slot("auto"):
        return str(flow_run.id)


def test_whoever_waits_frees_a_slot_that_nobody_holds(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a server is killed once it has taken the slot, and before it notes the lease."""
    monkeypatch.setenv(VARIABLE, DEFAULT_NAME)
    monkeypatch.setattr(gpu_limit, "_patience", lambda: 3.0)
    set_limit(1)
    with get_client(sync_client=True) as client:
        client.increment_concurrency_slots([DEFAULT_NAME], 1, "concurrency")
    run = held_for_a_moment()
    assert api.get(f"/v2/concurrency_limits/{DEFAULT_NAME}")["active_slots"] == 0
    assert api.get(f"/flow_runs/{run}")["state_type"] == "COMPLETED"
    states = [one["name"] for one in api.get(f"/flow_run_states/?flow_run_id={run}")]
    assert gpu_limit.WAITS in states
    assert states[-1] == "Completed"
    until(lambda: "held by no run: they are free again" in api.logged(run))


def test_only_slots_that_no_run_holds_are_freed_and_by_one_of_those_that_wait(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, DEFAULT_NAME)
    monkeypatch.setattr(gpu_limit, "_patience", lambda: 3.0)
    set_limit(1)
    with get_client(sync_client=True) as client:
        client.increment_concurrency_slots([DEFAULT_NAME], 1, "concurrency")
        holder = client.create_flow_run(held_for_a_moment)
        client.set_flow_run_state(holder.id, Running(), force=True)
        assert gpu_limit.free_lost_slots(DEFAULT_NAME) == 0
        others = [client.create_flow_run(held_for_a_moment).id for _ in range(2)]
        for run in (holder.id, *others):
            client.set_flow_run_state(run, Running(name=gpu_limit.WAITS), force=True)

    def freed_by(run: UUID) -> int:
        monkeypatch.setattr(gpu_limit, "flow_run", type("Own", (), {"id": str(run)}))
        return gpu_limit.free_lost_slots(DEFAULT_NAME)

    first, *later = sorted((holder.id, *others))
    assert [freed_by(run) for run in later] == [0, 0]
    until(lambda: freed_by(first) == 1)  # others that ended just now count for a while
    with get_client(sync_client=True) as client:
        for run in (holder.id, *others):
            client.set_flow_run_state(run, Completed(), force=True)


@pytest.mark.parametrize("tagged", [True, False])
def test_a_run_that_never_gave_a_sign_of_life_is_closed_where_it_is_watched(tagged: bool, api: Api) -> None:
    set_watchdog(timedelta(seconds=10))
    with get_client(sync_client=True) as client:
        lost = [client.create_flow_run(held_for_a_moment, tags=[TAG] if one else []).id for one in (tagged, True)]
        for run in lost:
            client.set_flow_run_state(run, Running(), force=True)
    until(lambda: api.get(f"/flow_runs/{lost[1]}")["state_type"] == "CRASHED")
    if tagged:
        until(lambda: api.get(f"/flow_runs/{lost[0]}")["state_type"] == "CRASHED")
    else:
        assert api.get(f"/flow_runs/{lost[0]}")["state_type"] == "RUNNING"


def test_a_killed_command_is_closed_where_the_server_watches(api: Api, pair: tuple[Path, Path], tmp_path: Path) -> None:
    arguments = ["compress", *map(str, pair), "--method", "dare", "--cr", "8", "--store", str(tmp_path / "store")]
    environment = {"PREFECT_API_URL": str(PREFECT_API_URL.value())}

    def watched() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = api.post("/flow_runs/filter", flow_runs={"tags": {"all_": [TAG]}})
        return [run for run in found if run["parameters"].get("request", {}).get("store") == str(tmp_path / "store")]

    set_watchdog(timedelta(seconds=10))
    with start_impart(*arguments, environment=environment) as command:
        halt_when(
            lambda: any(run["state_type"] == "RUNNING" for run in watched()),
            command.send_signal,
            lambda: command.poll() is None,
        )
        command.kill()
    until(lambda: [run["state_type"] for run in watched()] == ["CRASHED"])


@flow
def closing() -> int:
    """Stand for a run of a zoo that begins."""
    return close_earlier_runs()


@pytest.mark.parametrize(("limit", "closed"), [(1, 2), (2, 0), (None, 0)])
def test_a_run_closes_those_of_its_deployment_that_it_would_not_run_beside(
    limit: int | None, closed: int, api: Api, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = ConcurrencyLimitConfig(limit=limit) if limit else None
    made = closing.to_deployment(tmp_path.name, concurrency_limit=config, entrypoint_type=EntrypointType.MODULE_PATH)
    deployment = made.apply()  # type: ignore[union-attr]
    other = closing.to_deployment(f"{tmp_path.name}-other").apply()  # type: ignore[union-attr]
    with get_client(sync_client=True) as client:
        states = (Running(), Pending(), Running())
        runs = [client.create_flow_run_from_deployment(UUID(str(one))).id for one in (deployment, deployment, other)]
        for run, state in zip(runs, states, strict=True):
            client.set_flow_run_state(run, state, force=True)
    monkeypatch.setattr("impart_flows.watchdog.deployment", type("Own", (), {"id": str(deployment)}))
    assert closing() == closed
    found = [api.get(f"/flow_runs/{run}")["state_type"] for run in runs]
    assert found == (["CRASHED", "CRASHED", "RUNNING"] if closed else ["RUNNING", "PENDING", "RUNNING"])


def test_a_place_is_free_once_its_run_is_closed_also_where_the_server_lost_its_leases(tmp_path: Path) -> None:
    """As after a server that keeps leases in memory has gone down with everything else; later nights would not run."""
    server = PrefectServer(tmp_path, {})
    server.start()
    try:
        with temporary_settings({PREFECT_API_URL: server.variables["PREFECT_API_URL"]}):
            alone = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
            deployment: Any = closing.to_deployment("lost", concurrency_limit=alone).apply()  # type: ignore[union-attr]
            with get_client(sync_client=True) as client:
                first, second = (client.create_flow_run_from_deployment(deployment).id for _ in range(2))
                client.set_flow_run_state(first, Pending())
                client.set_flow_run_state(first, Running())
                assert client.set_flow_run_state(second, Pending()).status == SetStateStatus.REJECT
            server.kill()
            shutil.rmtree(tmp_path / "concurrency_leases")
            server.start()
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(first, Crashed(), force=True)
                third = client.create_flow_run_from_deployment(deployment).id
                assert client.set_flow_run_state(third, Pending()).status == SetStateStatus.ACCEPT
    finally:
        server.stop()
