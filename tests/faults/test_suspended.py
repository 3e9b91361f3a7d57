"""`impart gc --delete` that is stopped in mid-sweep and woken later, or killed there, in processes of its own."""

import os
import signal
import time
from pathlib import Path

import pytest

from impart_core.storage.folder import FolderObjects
from impart_core.store import sweep
from impart_core.store.gc import collect
from impart_core.store.manifest import MANIFEST
from impart_core.store.pins import SWEEP_LEASE, pin
from impart_core.store.store import Store
from tests.faults.places import Place, files_in
from tests.faults.tally import Tally
from tests.faults.warm import Command, beside, impart, run_warm, wait_until
from tests.impart_core.store.samples import NO_GRACE, small_delta

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the state of processes under /proc"),
]
COLLECT = ("gc", "--grace", "0s", "--delete", "--everything", "--store")


def collect_and_signal(url: str, told: str, number: int, after: int, batch: int) -> None:
    """Run `impart gc --delete`, and send this process a signal once so many objects of artifacts are deleted.

    Nought is before any is: when the sweep is announced and the collector looks at the pins once more.
    """
    deleted, find, delete = 0, FolderObjects.find, FolderObjects.delete

    def signal_once() -> None:
        if not Path(told).exists():
            Path(told).touch()
            os.kill(os.getpid(), number)

    def find_watched(self: FolderObjects, prefix: str) -> object:
        if prefix == "pins" and deleted >= after and self.names("sweeps"):
            signal_once()
        return find(self, prefix)

    def delete_watched(self: FolderObjects, paths: list[str]) -> None:
        nonlocal deleted
        paths = list(paths)
        delete(self, paths)
        deleted += sum(path.startswith("artifacts/") for path in paths)

    FolderObjects.find, FolderObjects.delete = find_watched, delete_watched  # type: ignore[method-assign,assignment]
    sweep._BATCH = batch
    impart(*COLLECT, url)


def is_stopped(command: Command) -> bool:
    """Return whether a process has been stopped by a signal."""
    state = Path(f"/proc/{command._process.pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state == "T"


def let_sweeps_lapse(store: Store) -> None:
    """Make every announcement of a collector as old as if it had slept for long."""
    then = time.time() - SWEEP_LEASE.total_seconds() - 1
    for path in store.objects.find("sweeps"):
        os.utime(Path(store.url) / path, (then, then))


@pytest.mark.parametrize("after", [0, 1, 2, 4, 8])
@pytest.mark.parametrize("how", ["tag", "pin"])
def test_what_is_named_or_pinned_while_the_collector_is_stopped_is_there_when_it_has_woken(
    how: str, after: int, in_folder: Place, tmp_path: Path, count: Tally
) -> None:
    store = Store(in_folder.url)
    deltas = [small_delta(store, seed) for seed in range(2)]
    time.sleep(0.01)  # nothing is younger than now
    arguments = (in_folder.url, str(tmp_path / "told"), signal.SIGSTOP, after, 1)
    with beside(collect_and_signal, *arguments, environment=in_folder.environment) as collector:
        wait_until(lambda: is_stopped(collector), collector)
        count("collector stopped in mid-sweep")
        let_sweeps_lapse(store)
        saved = []
        for number, delta in enumerate(deltas):
            if how == "pin":
                saved.append(pin(store, [delta.id]))
                continue
            done = run_warm("tag", delta.id, f"saved-{number}", "--store", store.url, environment=in_folder.environment)
            # What lacks a part by then cannot be named: it is told, and nothing is written.
            assert done.returncode == (0 if store.lookup(delta.id) else 2), done.stderr
        before = store.objects.find("artifacts")
        named = [delta.id for delta in deltas if store.lookup(delta.id)]
        collector.send(signal.SIGCONT)
        done = collector.wait()
    assert done.returncode == 0, done.stderr
    if named:
        assert "Not all of it yet: run it again." in done.stdout or after == 0
        assert store.objects.find("artifacts").keys() >= {
            path for path in before if path.split("/")[1] in kept_by(store, named)
        }
    assert len(named) == max(0, 2 - after)
    for number in range(len(deltas)) if how == "tag" else ():
        name = f"saved-{number}"
        if (Path(store.url) / "refs" / name).exists():
            verified = run_warm("verify", name, "--store", store.url, environment=in_folder.environment)
            assert verified.returncode == 0, verified.stdout


def kept_by(store: Store, named: list[str]) -> set[str]:
    """Return deltas, and all that they were made from."""
    blocks = {block for delta in named for block in store.manifest(delta).parents}
    return {*named, *blocks, *(parent for block in blocks for parent in store.manifest(block).parents)}


@pytest.mark.parametrize("after", [1, 3, 5, 9])
def test_a_collector_that_is_killed_in_mid_delete_leaves_no_half(
    after: int, in_folder: Place, tmp_path: Path, count: Tally
) -> None:
    store = Store(in_folder.url)
    for seed in range(2):
        small_delta(store, seed)
    time.sleep(0.01)
    arguments = (in_folder.url, str(tmp_path / "told"), signal.SIGKILL, after, 1)
    with beside(collect_and_signal, *arguments, environment=in_folder.environment) as collector:
        assert collector.wait().returncode == -signal.SIGKILL
    count("collector killed in mid-delete")
    files_in(in_folder.objects())  # each that a manifest names is there
    ids = store.ids()
    assert all(set(store.manifest(artifact).parents) <= set(ids) for artifact in ids)
    let_sweeps_lapse(store)
    assert collect(store, NO_GRACE, delete=True, everything=True).complete
    assert not [path for path in store.objects.find("artifacts") if path.endswith(MANIFEST)]
