"""Several at once on one store: the same run twice, a race to publish, a garbage collector that never rests."""

import json
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from impart_core.base.errors import ArtifactNotFoundError
from impart_core.store.gc import collect
from impart_core.store.store import Store
from tests.faults.conftest import Wanted
from tests.faults.places import Place, assert_whole, files_in, manifests_in
from tests.faults.tally import Tally
from tests.faults.warm import beside, run_warm, warm
from tests.impart_core.store.samples import NO_GRACE, sample

pytestmark = pytest.mark.faults

Pair = tuple[Path, Path]
PROCESSES, ARTIFACTS = 8, 20


def test_the_same_run_twice_at_once_makes_one_delta(pair: Pair, wanted: Wanted, place: Place, count: Tally) -> None:
    run = ["compress", *map(str, pair), "--cr", "4", "--name", "twice", "--store", place.url, "--json"]
    with warm(*run, environment=place.environment) as one, warm(*run, environment=place.environment) as other:
        reports = one.result(), other.result()
    count("runs that raced for one delta", 2)
    assert reports[0]["artifact"] == reports[1]["artifact"]
    assert all(report["blocks"] == 3 and report["remade"] == [] for report in reports)
    objects = assert_whole(place, wanted)
    moves = [path.rpartition("/")[2] for path in objects if path.startswith("refs/twice/")]
    assert moves == ["00000001.copy.json", "00000001.json"]
    assert not [path for path in objects if path.startswith("pins/")]
    assert run_warm("verify", "twice", "--store", place.url, environment=place.environment).returncode == 0


def publish_all(url: str, folder: str, number: int) -> None:
    """Publish the artifacts once all have been told to begin, and print the manifests in force."""
    made = [sample(Path(folder) / f"{number}-{seed}", seed=seed) for seed in range(ARTIFACTS)]
    store = Store(url)
    (Path(folder) / f"ready-{number}").touch()
    while not (Path(folder) / "go").exists():
        time.sleep(0.001)
    print(json.dumps({manifest.id: store.publish(manifest, files).to_json().decode() for manifest, files in made}))


def test_eight_processes_race_to_publish_and_one_manifest_of_each_is_in_force(
    place: Place, tmp_path: Path, count: Tally
) -> None:
    folder = tmp_path / "race"
    folder.mkdir()
    with ExitStack() as stack:
        racers = [
            stack.enter_context(beside(publish_all, place.url, str(folder), number, environment=place.environment))
            for number in range(PROCESSES)
        ]
        while len(list(folder.glob("ready-*"))) < PROCESSES:
            assert all(racer.running for racer in racers), [racer.said() for racer in racers]
            time.sleep(0.01)
        (folder / "go").touch()
        returned = [racer.result() for racer in racers]
    count("processes that raced to publish", PROCESSES)
    objects = place.objects()
    in_force = {path.split("/")[1]: data.decode() for path, data in objects.items() if path.endswith("/manifest.json")}
    assert len(in_force) == ARTIFACTS
    assert all(found == in_force for found in returned)
    assert len(files_in(objects)) == ARTIFACTS


def collect_all_the_time(url: str, until: str) -> None:
    """Collect with no grace again and again until a file is there; print how often, and how much went."""
    times = gone = 0
    while not Path(until).exists():
        with suppress(ArtifactNotFoundError):  # the first run has not made the store yet
            found = collect(Store(url), NO_GRACE, delete=True, everything=True)
            times, gone = times + 1, gone + sum(map(len, found.artifacts.values()))
    print(json.dumps({"times": times, "gone": gone}))


def test_runs_and_a_collector_that_never_rests_do_not_harm_each_other(
    pair: Pair, wanted: Wanted, place: Place, tmp_path: Path, count: Tally
) -> None:
    until = tmp_path / "until"
    with beside(collect_all_the_time, place.url, str(until), environment=place.environment) as collector:
        for seed in range(3):
            run = ["compress", *map(str, pair), "--store", place.url, "--json"]
            named, unnamed = ["--cr", "4", "--name", f"kept-{seed}"], ["--cr", "8"]
            with (
                warm(*run, *named, "--seed", str(seed), environment=place.environment) as one,
                warm(*run, *unnamed, "--seed", str(seed), environment=place.environment) as other,
            ):
                reports = one.result(), other.result()
            assert all(report["blocks"] == 3 and report["remade"] == [] for report in reports)
            verified = run_warm("verify", f"kept-{seed}", "--store", place.url, environment=place.environment)
            assert verified.returncode == 0, (verified.stdout, verified.stderr)
            gone = run_warm("verify", reports[1]["artifact"], "--store", place.url, environment=place.environment)
            absent = f"error: Unknown artifact {reports[1]['artifact']!r}"  # nothing kept it once its run had ended
            assert gone.returncode == 0 or gone.stderr.startswith(absent), (gone.stdout, gone.stderr)
            assert collector.running, collector.said()
        until.touch()
        swept = collector.result()
    assert swept["times"] > 3
    assert swept["gone"] > 0
    count("runs beside a collector", 6)
    # A last collection leaves what the names reach, and that is whole.
    collect_with = ["gc", "--grace", "0s", "--delete", "--store", place.url]
    assert run_warm(*collect_with, environment=place.environment).returncode == 0
    objects = assert_whole(place, wanted, others=True)
    assert len(manifests_in(objects, "delta")) == 3
