"""A Prefect server as its API shows it, and waiting for it."""

import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from typing import Any

import httpx

PATIENCE = 400  # seconds; a schedule fires each minute


class Api:
    """A Prefect server, as its API shows it."""

    def __init__(self, url: str) -> None:
        """Talk to the server at this address."""
        self._client = httpx.Client(base_url=url, timeout=60)

    def get(self, path: str) -> Any:
        """Return what is at a path."""
        answer = self._client.get(path)
        answer.raise_for_status()
        return answer.json()

    def post(self, path: str, **asked: Any) -> Any:
        """Return what a filter finds."""
        answer = self._client.post(path, json=asked)
        answer.raise_for_status()
        return answer.json()

    def states(self) -> dict[str, str]:
        """Return the state of every run of a deployment, by its id."""
        runs = self.post("/flow_runs/filter", sort="EXPECTED_START_TIME_ASC")
        return {run["id"]: run["state_type"] for run in runs if run["deployment_id"]}

    def events(self, *names: str) -> list[dict[str, Any]]:
        """Return the last events of these names, the earliest first."""
        wanted = {"event": {"name": list(names)}, "order": "ASC"}
        found: list[dict[str, Any]] = self.post("/events/filter", filter=wanted, limit=50)["events"]
        return found

    def beating(self) -> set[str]:
        """Return the ids of the flow runs that have sent a heartbeat."""
        found = self.events("prefect.flow-run.heartbeat")
        return {event["resource"]["prefect.resource.id"].removeprefix("prefect.flow-run.") for event in found}

    def logged(self, run: str) -> str:
        """Return what a run has logged."""
        wanted = {"flow_run_id": {"any_": [run]}}
        return "\n".join(line["message"] for line in self.post("/logs/filter", logs=wanted))


def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "what is waited for did not come about"
        time.sleep(0.2)


def wait_for(condition: Callable[[], object], process: Popen[bytes], log: Path) -> None:
    """Wait until a condition holds while a worker runs."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
