"""Nights of a zoo in which everything is killed: flow, worker, machine, Prefect server, PostgreSQL and S3 server.

`python -m tests.bench.night --kills 100 --seed 0` first brings a zoo up to date undisturbed. Then it does so through a
deployment, a worker and servers of which one is killed by SIGKILL again and again, at moments that are drawn: so many
requests to the store after the last kill. A killed run is followed by the next, until all entries are up to date; then
the zoo begins anew in an empty store, so that every kill meets work. It prints whether every such store has the
undisturbed one's names, ids and bytes, and what the dead left: runs that were open, and slots that were held.
"""

import argparse
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
from prefect.settings import PREFECT_API_URL, temporary_settings

from impart_core import tinyzoo
from impart_flows.gpu_limit import DEFAULT_NAME, LEASE, VARIABLE
from impart_flows.watchdog import HEARTBEAT_SECONDS, set_watchdog
from tests.e2e.prefect_api import Api
from tests.faults.places import Place, files_in, manifests_in
from tests.installation import PARTS, POOL, Installation, installation
from tests.slots import SlotWatch
from tests.support import finetune, llama_shapes, random_tensors, run_impart, run_json, save_checkpoint

SILENCE = timedelta(seconds=HEARTBEAT_SECONDS + 10)  # a night cannot begin before the last is closed
LEASE_SECONDS = 60  # the least that Prefect takes
REQUESTS_BETWEEN_KILLS = 120  # at most; a model takes some dozens
SECONDS_BETWEEN_NIGHTS = 20.0  # a schedule fires whatever became of the last night: it is left out if that is open
STANDS_STILL_SECONDS = 15.0  # a run that asks nothing of the store for so long waits for something else
PATIENCE_SECONDS = 600.0
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@dataclass
class Found:
    """A store as it is looked at in the end.

    Attributes:
        names: the id of each promoted name.
        files: the SHA-256 of every file that is part of an artifact; of evaluations, whose files tell when they were
            made, the metrics.
        left: claims, pins and sweeps that are still there.
    """

    names: Mapping[str, str]
    files: Mapping[str, str]
    left: Counter[str]

    @classmethod
    def of(cls, place: Place) -> "Found":
        """Read all of a store, past the program; files must be as their manifests record."""
        objects = place.objects()
        moves = sorted(path for path in objects if path.startswith("refs/") and not path.endswith(".copy.json"))
        names = {path.split("/")[1]: str(json.loads(objects[path])["id"]) for path in moves}
        timed = manifests_in(objects, "zoo_run", "evaluation")
        files = {path: digest for path, digest in files_in(objects).items() if path.split("/")[1] not in timed}
        for made, manifest in manifests_in(objects, "evaluation").items():
            files[f"artifacts/{made}"] = json.dumps(manifest["content"]["metrics"], sort_keys=True)
        left = Counter(path.split("/")[0] for path in objects if path.split("/")[0] in ("claims", "pins", "sweeps"))
        return cls({name: found for name, found in names.items() if "@" in name}, files, left)

    def same(self, other: "Found") -> bool:
        """Return whether names, ids and bytes are the other's."""
        return (self.names, self.files) == (other.names, other.files)


@dataclass
class Nights:
    """Nights of a zoo on an installation, one after the other, for as long as there are kills to be done.

    Attributes:
        parts: what is killed.
        api: its Prefect server.
        deployment: the id of the zoo's deployment.
        request: its parameter.
        wanted: the undisturbed store.
        runs: of all nights so far.
        deaths: when each run died, by its id.
        rounds: stores that were finished.
        begun: when the last night was asked for.
    """

    parts: Installation
    api: Api
    deployment: str
    request: Mapping[str, Any]
    wanted: Found
    runs: list[str] = field(default_factory=list)
    deaths: dict[str, float] = field(default_factory=dict)
    rounds: list[Found] = field(default_factory=list)
    begun: float = 0.0

    @property
    def place(self) -> Place:
        """The store that is worked on."""
        return Place(f"s3://impart/round{len(self.rounds)}", self.parts.environment, self.parts.store.variables)

    def kill(self, part: str, requests: int) -> None:
        """Kill a part once a run is at work and has made so many requests."""
        self.get_under_way(requests)
        moment = time.time()
        dead = self.parts.kill(part)
        self.deaths |= dict.fromkeys(dead, moment)
        _say(f"killed {part}; {len(dead)} runs died of it; round {len(self.rounds)}, run {len(self.runs)}")

    def get_under_way(self, requests: int) -> None:
        """Return once a run lives and has made so many requests, or stands still; nights begin as they are needed."""
        begin, moved = None, time.monotonic()
        while True:
            seen = len(self.parts.proxy.requests)
            if not self.parts.runs():
                begin, moved = None, time.monotonic()
                self.begin_if_over()
            elif begin is None:
                begin, last, moved = seen, seen, time.monotonic()
            elif seen != last:
                last, moved = seen, time.monotonic()
            if begin is not None:
                still = time.monotonic() - moved > STANDS_STILL_SECONDS
                if (seen - begin >= requests) or (still and "RUNNING" in map(self.state, self.parts.runs())):
                    return
            time.sleep(0.2)

    def begin_if_over(self) -> None:
        """Begin a night where none is due or under way, in a new store where the last was finished."""
        self.parts.revive()
        state = self.state(self.runs[-1]) if self.runs else "COMPLETED"
        if state not in FINAL - {"CANCELLED"} and time.monotonic() - self.begun < SECONDS_BETWEEN_NIGHTS:
            return  # one that was left out was so for another one, which is open
        if self.runs and state == "COMPLETED":
            self.end_round()
        asked = {"parameters": {"request": {**self.request, "store": self.place.url}}, "state": {"type": "SCHEDULED"}}
        made = patiently(lambda: self.api.post(f"/deployments/{self.deployment}/create_flow_run", **asked))
        self.runs.append(made["id"])
        self.begun = time.monotonic()

    def end_round(self) -> bool:
        """Note a store in which all names are there, and go on to the next; return whether it was one."""
        found = patiently(lambda: Found.of(self.place))
        if found.names.keys() != self.wanted.names.keys():
            return False
        _say(f"round {len(self.rounds)} is finished, {'as' if found.same(self.wanted) else 'NOT as'} undisturbed")
        self.rounds.append(found)
        return True

    def state(self, run: str) -> str:
        """Return the state of a night."""
        return str(patiently(lambda: self.api.get(f"/flow_runs/{run}"))["state_type"])

    def finish(self) -> None:
        """Leave the nights alone until this store is finished."""
        while True:
            self.parts.revive()
            if not self.parts.runs():
                if self.runs and self.state(self.runs[-1]) == "COMPLETED" and self.end_round():
                    return
                self.begin_if_over()
            time.sleep(0.5)


def measure_night(kills: int = 7, seed: int = 0, models: int = 12, gpus: int = 1, minutes: int = 600) -> dict[str, Any]:
    """Return what became of a zoo while so many parts of its installation were killed.

    Args:
        kills: how many.
        seed: of what is killed, and when.
        models: generated models of the zoo; a merge and a model with a gate are added.
        gpus: slots of the limit; entries take one each.
        minutes: nothing more is killed after so many.
    """
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        scratch = Path(folder)
        file = write_zoo(scratch, models)
        wanted = undisturbed(scratch, file)
        _say(f"undisturbed: {len(wanted.names)} names, {len(wanted.files)} files")
        parts = stack.enter_context(installation(scratch))
        stack.enter_context(temporary_settings({PREFECT_API_URL: parts.server.variables["PREFECT_API_URL"]}))
        run_json("zoo", "setup", "--gpus", str(gpus), environment=dict(parts.environment))
        parts.start_worker({VARIABLE: DEFAULT_NAME, LEASE: str(LEASE_SECONDS)})
        nights = deployed(parts, file, wanted)
        set_watchdog(SILENCE)
        limit = nights.api.get(f"/v2/concurrency_limits/{DEFAULT_NAME}")["id"]
        (url,) = (one for one in parts.database.variables.values() if one.startswith("postgresql"))
        watch = SlotWatch(url.replace("+asyncpg", ""), parts.server.home / "concurrency_leases", limit)
        began, killed = time.monotonic(), list[str]()
        with watch:
            for part in schedule(kills, draw):
                if time.monotonic() - began > 60 * minutes:
                    break
                nights.kill(part, draw.randrange(REQUESTS_BETWEEN_KILLS))
                killed.append(part)
            nights.finish()
            closed = wait_until_closed(watch, nights.deaths)
        return {
            "seed": seed,
            "kills": len(killed),
            **{f"kills_of_{part}": count for part, count in Counter(killed).items()},
            "seconds": time.monotonic() - began,
            **figures(nights, watch),
            **closed,
        }


def schedule(kills: int, draw: random.Random) -> list[str]:
    """Return what is killed, in which order: each part as often as any other, in rounds that are shuffled."""
    found: list[str] = []
    while len(found) < kills:
        found += draw.sample(PARTS, len(PARTS))
    return found[:kills]


def write_zoo(root: Path, models: int) -> Path:
    """Save a base and so many fine-tunes of it, one of them large; return the file of a zoo of them."""
    base = random_tensors(llama_shapes())
    save_checkpoint(root / "base", base)
    for number in range(models):
        save_checkpoint(root / "models" / f"m{number:02}", finetune(base, seed=number))
    places = [str(root / "models" / f"m{number:02}") for number in range(models)]
    tiny, code = str(tinyzoo.path("base")), str(tinyzoo.path("code"))
    sources = [{"model": place, "parameters": {"weight": 0.5}} for place in places[:2]]
    merge = {"merge_method": "task_arithmetic", "base_model": str(root / "base"), "models": sources}
    gate = {"tasks": {"tinyzoo_code": "answer_loss"}, "errors": 0, "limit": 4, "loses": 0.01}
    zoo = {
        "zoo": "night",
        "recipes": {
            "default": {"steps": [{"method": "impart", "cr": 4}]},
            "gated": {"steps": [{"method": "lowrank", "cr": 64}, {"method": "lowrank", "cr": 2}], "gate": gate},
        },
        "models": [
            *({"name": Path(place).name, "base": str(root / "base"), "finetuned": place} for place in places),
            {"name": "code", "base": tiny, "finetuned": code, "recipe": "gated"},
        ],
        "merges": [
            {"name": "both", "merge": {**merge, "impart": {"compress": {"method": "lowrank", "cr": 4}}}},
        ],
        "concurrency": 2,
    }
    file = root / "zoo.yaml"
    file.write_text(json.dumps(zoo))
    return file


def undisturbed(root: Path, file: Path) -> Found:
    """Bring the zoo up to date in a folder, with nothing in its way; return what is there then."""
    store = str(root / "undisturbed")
    environment = {"IMPART_CACHE": str(root / "own-cache"), "PREFECT_API_URL": None}
    run_json("zoo", "run", str(file), "--store", store, environment=environment)
    return Found.of(Place(store, environment))


def deployed(parts: Installation, file: Path, wanted: Found) -> Nights:
    """Deploy the zoo once the worker has made its pool; return its nights."""
    environment = dict(parts.environment)
    arguments = ("zoo", "deploy", str(file), "--pool", POOL, "--store", "s3://impart/round0", "--json")

    def deploy() -> dict[str, Any]:
        done = run_impart(*arguments, environment=environment)
        if done.returncode and "There is no work pool" in done.stderr:
            raise httpx.TransportError(done.stderr)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    api = Api(str(environment["PREFECT_API_URL"]))
    made = patiently(deploy)
    request = api.get(f"/deployments/{made['id']}")["parameters"]["request"]
    return Nights(parts, api, made["id"], request, wanted)


def figures(nights: Nights, watch: SlotWatch) -> dict[str, Any]:
    """Return what the nights came to."""
    environment = dict(nights.parts.environment)
    stores = [f"s3://impart/round{number}" for number in range(len(nights.rounds))]
    verified = [run_impart("verify", "--all", "--store", store, environment=environment) for store in stores]
    states = Counter(nights.api.get(f"/flow_runs/{run}")["state_type"] for run in nights.runs)
    rows = watch.query("select s.id, t.flow_run_id from flow_run s join task_run t on t.id = s.parent_task_run_id")
    assert rows is not None
    deaths = {str(entry): nights.deaths[str(run)] for entry, run in rows if str(run) in nights.deaths}
    return {
        "nights": len(nights.runs),
        **{f"nights_{state.lower()}": count for state, count in states.items()},
        "stores_finished": len(nights.rounds),
        "stores_as_undisturbed": sum(found.same(nights.wanted) for found in nights.rounds),
        "stores_verified": sum(done.returncode == 0 for done in verified),
        **{f"{kind}_left_in_all": sum(found.left[kind] for found in nights.rounds) for kind in ("claims", "pins")},
        "slot_held_by_dead_seconds": watch.held_by_the_dead(deaths),
        "slot_held_by_nobody_seconds": watch.held_by_nobody(),
        "slots_held_at_end": watch.look().taken,
    }


def wait_until_closed(watch: SlotWatch, deaths: Mapping[str, float]) -> dict[str, Any]:
    """Wait until no run is open and no slot is held; return how long the dead were open for, at most."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    open_runs = "select name, state_type, id from flow_run where state_type not in ('{}')".format("', '".join(FINAL))
    left: Any = None
    while time.monotonic() < deadline:
        left = watch.query(open_runs)
        if left == [] and watch.look().taken == 0:
            break
        time.sleep(1)
    rows = watch.query(
        "select coalesce(t.flow_run_id, s.id), extract(epoch from s.end_time) from flow_run s "
        "left join task_run t on t.id = s.parent_task_run_id where s.state_type = 'CRASHED'"
    )
    open_for = [float(end) - deaths[str(run)] for run, end in rows or () if str(run) in deaths and end]
    return {
        "runs_left_open": len(left or ()),
        "orphans_closed": len(open_for),
        "orphan_open_seconds": max(open_for, default=0.0),
    }


def patiently(ask: Callable[[], Any]) -> Any:
    """Return what a server answers that may have been started again a moment ago."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return ask()
        except (httpx.HTTPError, OSError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("kills", 7), ("seed", 0), ("models", 12), ("gpus", 1), ("minutes", 600)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    for name, value in measure_night(**vars(asked)).items():
        print(f"{name:40} {value if isinstance(value, int) else f'{value:.4g}'}", flush=True)


if __name__ == "__main__":
    main()
