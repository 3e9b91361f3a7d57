"""Deleting in an order that leaves no half, and stopping when something begins to be used or the time is over."""

import os
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path

import pytest

from impart_core.store import pins, sweep
from impart_core.store.gc import collect
from impart_core.store.manifest import Manifest
from impart_core.store.names import set_ref, tag
from impart_core.store.pins import SWEEP_LEASE, pin
from impart_core.store.store import Store
from impart_core.store.sweep import discard
from tests.impart_core.store.samples import NO_GRACE, evaluation_of, small_delta

NOW = timedelta(0)


class KilledError(BaseException):
    """Stands for the end of a process."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def settle() -> None:
    time.sleep(0.01)  # what was written is older than nothing then


def parts_of(manifest: Manifest) -> set[str]:
    return {pointer.id for pointer in manifest.content.pointers()}


def require_no_half(store: Store) -> None:
    """Check that all manifests that are left have all that they were made from, with their files."""
    ids = set(store.ids())
    for artifact in ids:
        found = store.examine(artifact)
        assert found.manifest, found.fault
        assert set(found.manifest.parents) <= ids, found.manifest.content.kind


def each_deletion(store: Store, before: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Call something before each artifact's object is deleted."""
    delete = store.objects.delete

    def watched(paths: Iterable[str]) -> None:
        for path in list(paths):
            if path.startswith("artifacts/"):
                before(path)
            delete([path])

    monkeypatch.setattr(store.objects, "delete", watched)


def test_manifests_go_from_the_top_down_and_data_after_them(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(2):
        delta = small_delta(store, seed)
        evaluation_of(store, {"delta": delta.id}, parents=(delta.id,))
    kinds = {artifact: store.manifest(artifact).content.kind for artifact in store.ids()}
    settle()
    order: list[str] = []
    each_deletion(store, lambda path: order.append(path), monkeypatch)
    assert collect(store, NO_GRACE, delete=True, everything=True).complete
    manifests = [kinds[path.split("/")[1]] for path in order if path.endswith("manifest.json")]
    assert manifests == ["evaluation"] * 2 + ["delta"] * 2 + ["block"] * 4 + ["factors"] * 4
    assert all(path.endswith("manifest.json") for path in order[: len(manifests)])
    assert store.objects.find("artifacts") == {}


@pytest.mark.parametrize("batch", [1, 100])
def test_a_collector_that_is_killed_at_any_deletion_leaves_no_half(
    batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "_BATCH", batch)
    finished = False
    for deletions in range(100):
        store = Store(tmp_path / f"store-{deletions}")
        delta = small_delta(store, blocks=1)
        evaluation_of(store, {"delta": delta.id}, parents=(delta.id,))
        settle()
        left = deletions

        def die(_: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KilledError

        with monkeypatch.context() as patched:
            each_deletion(store, die, patched)
            try:
                finished = collect(store, NO_GRACE, delete=True, everything=True).complete
            except KilledError:
                require_no_half(store)
        assert collect(Store(store.url), NO_GRACE, delete=True, everything=True).complete
        assert store.objects.find("artifacts") == {}
        if finished:
            break
    assert finished
    assert deletions == 8  # four artifacts with a manifest and a file each


def test_a_circle_that_only_a_forger_can_make_goes_too(store: Store) -> None:
    delta = small_delta(store)
    artifact = store.manifest(delta.parents[0])
    forged = Manifest.make(
        store.manifest(artifact.parents[0]).recipe,
        files=store.manifest(artifact.parents[0]).files,
        content=store.manifest(artifact.parents[0]).content,
        provenance=artifact.provenance,
        parents=(delta.id,),
    )
    store.objects.replace(f"artifacts/{forged.id}/manifest.json", forged.to_json(), None)
    settle()
    assert collect(store, NO_GRACE, delete=True, everything=True).complete
    assert store.objects.find("artifacts") == {}


def pin_it(store: Store, delta: Manifest, held: list[object]) -> None:
    held.append(pins.Pin(store, [delta.id]))


def name_it(store: Store, delta: Manifest, held: list[object]) -> None:
    set_ref(store, "math", delta.id)


def lose_the_announcement(store: Store, delta: Manifest, held: list[object]) -> None:
    store.objects.delete(store.objects.find("sweeps"))


def let_the_announcement_lapse(store: Store, delta: Manifest, held: list[object]) -> None:
    then = time.time() - SWEEP_LEASE.total_seconds() - 1
    for path in store.objects.find("sweeps"):
        os.utime(Path(store.url) / path, (then, then))


def damage_a_pin(store: Store, delta: Manifest, held: list[object]) -> None:
    store.objects.create(f"pins/{'0' * 32}.json", b"damaged")


def damage_a_name(store: Store, delta: Manifest, held: list[object]) -> None:
    store.objects.create("refs/code/00000001.json", b"damaged")


EVENTS = [
    pin_it,
    name_it,
    lose_the_announcement,
    let_the_announcement_lapse,
    damage_a_pin,
    damage_a_name,
]


@pytest.mark.parametrize("event", EVENTS)
def test_what_happens_after_the_last_look_ends_the_collection_before_the_next_batch(
    event: Callable[[Store, Manifest, list[object]], None], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "_BATCH", 1)
    for seed in range(2):
        small_delta(store, seed)
    settle()
    order, held = list[str](), list[object]()

    def happen(path: str) -> None:
        order.append(path)
        if len(order) == 1:
            # This deletion is decided; the artifact that something is about is the other one, or the same.
            other = next(made for made in store.ids() if store.manifest(made).parents and made not in path)
            event(store, store.manifest(other), held)

    each_deletion(store, happen, monkeypatch)
    report = collect(store, NO_GRACE, delete=True, everything=True)
    assert not report.complete
    assert len(order) == 1
    assert len(store.ids()) == 9


def test_a_clock_that_ran_on_in_suspend_ends_the_collection_in_mid_batch(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_delta(store)
    settle()
    clock, order = [1000.0], list[str]()
    monkeypatch.setattr(pins, "seconds_awake_or_asleep", lambda: clock[0])

    def sleep_long(path: str) -> None:
        order.append(path)
        clock[0] += SWEEP_LEASE.total_seconds() if len(order) == 2 else 0

    each_deletion(store, sleep_long, monkeypatch)
    assert not collect(store, NO_GRACE, delete=True, everything=True).complete
    assert len(order) == 2


def test_what_others_name_and_pin_does_not_end_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "_BATCH", 1)
    kept = small_delta(store)
    tag(store, "math", kept.id)
    small_delta(store, seed=1)
    settle()

    def happen(_: str) -> None:
        set_ref(store, f"math{len(store.objects.names('refs'))}", kept.id)
        pins.Pin(store, [kept.id])

    each_deletion(store, happen, monkeypatch)
    assert collect(store, NO_GRACE, delete=True, everything=True).complete
    factors = {parent for block in kept.parents for parent in store.manifest(block).parents}
    assert set(store.ids()) == {kept.id, *kept.parents, *factors}


def test_what_is_discarded_is_spared_when_it_is_pinned_meanwhile(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "_BATCH", 1)
    made = [evaluation_of(store, {"delta": f"{seed:064x}"}).id for seed in range(3)]
    held: list[object] = []
    each_deletion(store, lambda _: held.append(pins.Pin(store, made)) if not held else None, monkeypatch)
    discard(store, made)
    assert len(store.ids()) == 2


def test_a_run_does_not_wait_for_a_sweep_that_has_lapsed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("impart_core.store.pins.time.sleep", lambda _: pytest.fail("it waits"))
    with pins.sweeping(store, ["a" * 64]):
        let_the_announcement_lapse(store, small_delta(store), [])
        with pin(store, ["a" * 64]):
            pass
