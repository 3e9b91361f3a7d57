"""MLflow as a target: a run and a model version for each delta that point to the store. No weights are sent.

MLflow's own REST API is spoken, so that nothing has to be installed. Pushing twice makes nothing twice: a run is found
by the artifact's id among its tags, a version by its source.
"""

import os
import re
import time
from typing import Any

import httpx

from impart_core.base.errors import ConfigError, ImpartError
from impart_core.base.settings import Frozen
from impart_core.base.text import without_secrets
from impart_core.share.pointer import PointerRecord, pointer_of
from impart_core.store.catalog import scan
from impart_core.store.store import Store
from impart_core.zoo.file import DEFAULT_EXPERIMENT
from impart_core.zoo.record import ZooRun

ADDRESS = "MLFLOW_TRACKING_URI"
_SECONDS = 10.0
_TRIES = 3
_ODD = re.compile(r"[^A-Za-z0-9_\-. /]")
_MOST_PARAMS = 100  # that the server takes in one request
_Answer = dict[str, Any]


class TrackingError(ImpartError):
    """The tracking server cannot be reached, or refuses what it is asked."""


class Registered(Frozen):
    """What a push found or made.

    Attributes:
        model: the registered model's name.
        version: its version.
        run: id of the run.
        experiment: name of the experiment.
        source: what the version points to.
        created: whether anything was made.
    """

    model: str
    version: str
    run: str
    experiment: str
    source: str
    created: bool


class TrackingServer:
    """A tracking server, spoken to over HTTP."""

    def __init__(self) -> None:
        """Take the address and credentials from the variables that MLflow's own client reads.

        Raises:
            ConfigError: there is no address, or it is none of a server.
        """
        address = os.environ.get(ADDRESS, "").strip()
        if not address.lower().startswith(("http://", "https://")):
            told = "not of http:// or https://" if address else "not set"
            raise ConfigError(f"{ADDRESS} is {told}. Give the address of a tracking server: http://mlflow:5000.")
        token = os.environ.get("MLFLOW_TRACKING_TOKEN")
        user = os.environ.get("MLFLOW_TRACKING_USERNAME")
        try:
            self._client = httpx.Client(
                base_url=f"{address.rstrip('/')}/api/2.0/mlflow/",
                timeout=_SECONDS,
                headers={"Authorization": f"Bearer {token}"} if token else {},
                auth=(user, os.environ.get("MLFLOW_TRACKING_PASSWORD", "")) if user and not token else None,
            )
        except (httpx.InvalidURL, ValueError):  # without its text and cause: it quotes parts of a password
            raise ConfigError(
                f"{ADDRESS} is no address (http://HOST:PORT), or MLFLOW_TRACKING_TOKEN holds what no header may. "
                "Characters of a password in an address are written with %: / as %2F."
            ) from None

    def push(self, record: PointerRecord, experiment: str) -> Registered:
        """Register a delta, as far as it is not registered yet.

        Raises:
            TrackingError: the server cannot be reached, or refuses something.
        """
        try:
            place = self._experiment(experiment)
            run, new_run = self._run(place, record)
            self._ask("registered-models/create", {"name": record.name}, fine=("RESOURCE_ALREADY_EXISTS",))
            version, new_version = self._version(record, run)
        except (AttributeError, LookupError, TypeError) as error:  # whoever answers, it is not MLflow
            raise TrackingError(
                f"What {ADDRESS} names does not answer as MLflow does ({type(error).__name__}: {error}). Give the "
                "address of a tracking server, without /api."
            ) from error
        if record.label:
            self._ask("registered-models/alias", {"name": record.name, "alias": record.label, "version": version})
        return Registered(
            model=record.name,
            version=version,
            run=run,
            experiment=experiment,
            source=record.source,
            created=new_run or new_version,
        )

    def _experiment(self, name: str) -> str:
        self._ask("experiments/create", {"name": name}, fine=("RESOURCE_ALREADY_EXISTS",))
        found = self._ask("experiments/get-by-name", {"experiment_name": name}, method="GET")
        return str(found["experiment"]["experiment_id"])

    def _run(self, experiment: str, record: PointerRecord) -> tuple[str, bool]:
        """Return the run of a delta in an experiment, with what is known of it by now, and whether it was made."""
        wanted = f"tags.`impart.artifact` = '{record.artifact}' and tags.`impart.store` = '{_quoted(record)}'"
        asked = {"experiment_ids": [experiment], "filter": wanted, "max_results": 1}
        runs = self._ask("runs/search", asked).get("runs", [])
        now = int(time.time() * 1000)
        if not runs:
            made = {"experiment_id": experiment, "run_name": record.tags["impart.ref"], "start_time": now}
            runs = [self._ask("runs/create", {**made, "tags": _pairs(record.tags)})["run"]]
        run, data = str(runs[0]["info"]["run_id"]), runs[0].get("data", {})
        known = {one["key"] for one in data.get("params", [])}
        values = {one["key"]: one["value"] for one in data.get("metrics", [])}
        params = {key: value for name, value in record.params.items() if (key := _ODD.sub("_", name)) not in known}
        metrics = {
            key: value for name, value in record.metrics.items() if values.get(key := _ODD.sub("_", name)) != value
        }
        batches = [_pairs(params)[at : at + _MOST_PARAMS] for at in range(0, len(params), _MOST_PARAMS)]
        for batch in batches:
            self._ask("runs/log-batch", {"run_id": run, "params": batch})
        told = [{**one, "timestamp": now, "step": 0} for one in _pairs(metrics)]
        self._ask("runs/log-batch", {"run_id": run, "metrics": told, "tags": _pairs(record.tags)})
        if not data.get("tags") or runs[0]["info"].get("status") != "FINISHED":
            self._ask("runs/update", {"run_id": run, "status": "FINISHED", "end_time": now})
        return run, not known

    def _version(self, record: PointerRecord, run: str) -> tuple[str, bool]:
        """Return the version of a model that points to a delta, and whether it was made."""
        about = {"filter": f"name='{record.name}'", "max_results": 1000}
        found = self._ask("model-versions/search", about, method="GET").get("model_versions", [])
        same = [one for one in found if one.get("source") == record.source]
        if same:
            return str(same[0]["version"]), False
        made = {"name": record.name, "source": record.source, "run_id": run, "tags": _pairs(record.tags)}
        return str(self._ask("model-versions/create", made)["model_version"]["version"]), True

    def _ask(self, what: str, about: _Answer, *, method: str = "POST", fine: tuple[str, ...] = ()) -> _Answer:
        """Return the server's answer; `fine` are codes of errors that are none."""
        why = ""
        for _ in range(_TRIES):
            try:
                given = {"params": about} if method == "GET" else {"json": about}
                answer = self._client.request(method, what, **given)  # type: ignore[arg-type]
                told = answer.json() if answer.content else {}
                if not isinstance(told, dict):
                    raise ValueError(f"it answered {answer.status_code} with no JSON object")
            except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
                why = f"{type(error).__name__}: {error}"
                if isinstance(error, httpx.TimeoutException | httpx.ConnectError):
                    break
                continue
            if answer.is_success or told.get("error_code") in fine:
                return dict(told)
            why = f"it answered {answer.status_code} {told.get('error_code', '')}: {told.get('message', '')}"
            if answer.status_code < 500:
                break
        raise TrackingError(f"The tracking server of {ADDRESS} did not take {what}: {without_secrets(why)[:500]}")


def push(store: Store, ref: str, artifact_id: str, experiment: str = DEFAULT_EXPERIMENT) -> Registered:
    """Register a delta with the tracking server of MLFLOW_TRACKING_URI.

    Raises:
        ImpartError: there is no such delta, no server, or the server refuses.
    """
    return TrackingServer().push(pointer_of(store, ref, artifact_id), experiment)


def push_run(run: ZooRun, store: Store, experiment: str) -> str:
    """Register what a run of the zoo promoted; return what went wrong in a sentence, empty where nothing did.

    The first request that the server does not take ends it: a server that is silent costs ten seconds.
    """
    done = run.with_status("promoted")
    waiting = [(one.ref, one.artifact) for one in done if one.artifact]
    if not waiting:
        return ""
    try:
        server, entries = TrackingServer(), list(scan(store).values())
        while waiting:
            ref, artifact = waiting[0]
            server.push(pointer_of(store, ref, artifact, entries), experiment)
            del waiting[0]
    except ImpartError as error:
        left = ", ".join(ref for ref, _ in waiting)
        return f"Not registered with MLflow: {left}. {error} `impart mlflow push NAME` does it later."
    return ""


def _pairs(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": value} for key, value in values.items()]


def _quoted(record: PointerRecord) -> str:
    return record.tags["impart.store"].replace("'", "\\'")
