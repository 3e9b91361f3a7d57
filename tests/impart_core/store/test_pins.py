"""Runs and the collector announce first and look second."""

import gc
import os
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest

from impart_core.base.errors import CorruptArtifactError, StoreUnreachableError
from impart_core.store import pins
from impart_core.store.pins import PIN_LEASE, PIN_RENEWED_EACH, SWEEP_LEASE, lapsed, pin, pinned_ids, sweeping
from impart_core.store.store import Store
from tests.impart_core.pipeline import flip

A, B = "a" * 64, "b" * 64


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def age(store: Store, folder: str, seconds: float) -> None:
    """Make all objects of a folder older."""
    then = time.time() - seconds
    for path in (Path(store.url) / folder).iterdir():
        os.utime(path, (then, then))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that runs in suspend, to be set."""
    now = [1000.0]
    monkeypatch.setattr(pins, "seconds_awake_or_asleep", lambda: now[0])
    return now


def test_what_is_pinned_is_pinned_until_it_is_released(store: Store) -> None:
    assert pinned_ids(store) == frozenset()
    with pin(store, [A]):
        with pin(store, [B]):
            assert pinned_ids(store) == {A, B}
        assert pinned_ids(store) == {A}
    assert pinned_ids(store) == frozenset()


def test_a_killed_runs_pin_lapses(store: Store) -> None:
    pin(store, [A])
    assert timedelta(hours=1) >= PIN_LEASE
    age(store, "pins", PIN_LEASE.total_seconds() - 60)
    assert pinned_ids(store) == {A}
    assert lapsed(store) == []
    age(store, "pins", PIN_LEASE.total_seconds() + 60)
    assert pinned_ids(store) == frozenset()
    (path,) = lapsed(store)
    assert path.startswith("pins/")


def test_a_pin_is_renewed_for_as_long_as_somebody_holds_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pins, "_RENEWAL_TICK_SECONDS", 0.005)
    monkeypatch.setattr(pins.Pin.renew, "__defaults__", (timedelta(0),))
    held = pin(store, [A])
    age(store, "pins", PIN_LEASE.total_seconds() - 60)
    (path,) = (Path(store.url) / "pins").iterdir()
    while time.time() - path.stat().st_mtime > 60:
        time.sleep(0.01)
    assert pinned_ids(store) == {A}
    assert not held.lost()
    ended = held._ended
    del held
    gc.collect()
    assert ended.wait(10)  # nobody holds it: it lapses
    age(store, "pins", PIN_LEASE.total_seconds() + 60)
    assert pinned_ids(store) == frozenset()


def test_a_pin_that_is_released_is_not_written_again(store: Store, clock: list[float]) -> None:
    held = pin(store, [A])
    held.release()
    clock[0] += 2 * PIN_LEASE.total_seconds()
    held.renew()
    assert store.objects.names("pins") == []


def test_a_pin_is_renewed_when_it_is_due_and_not_before(store: Store, clock: list[float]) -> None:
    held = pin(store, [A])
    for seconds, renewed in ((1, False), (PIN_RENEWED_EACH.total_seconds(), True), (1, False)):
        age(store, "pins", 600)
        clock[0] += seconds
        held.renew()
        (info,) = store.objects.find("pins").values()
        assert (store.objects.now() - info.modified < timedelta(seconds=300)) == renewed
    assert not held.lost()


def test_a_run_that_was_stopped_for_longer_than_the_lease_pins_again_and_knows(
    store: Store, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    held = pin(store, [A])
    first = held.path
    clock[0] += PIN_LEASE.total_seconds() + 1
    assert held.lost()
    assert "stopped for so long" in caplog.text
    assert held.path != first
    assert store.objects.names("pins") == [held.path.removeprefix("pins/")]
    assert pinned_ids(store) == {A}
    clock[0] += 1
    assert held.lost()  # from then on


def test_a_pin_that_somebody_deleted_is_made_again(store: Store, clock: list[float]) -> None:
    held = pin(store, [A])
    store.objects.delete([held.path])
    clock[0] += PIN_RENEWED_EACH.total_seconds()
    held.renew()
    assert pinned_ids(store) == {A}
    assert held.lost()


def test_whoever_lost_a_pin_waits_for_the_sweep_that_may_be_under_way(store: Store, clock: list[float]) -> None:
    held, told = pin(store, [A]), threading.Event()
    with sweeping(store, [A]):
        clock[0] += PIN_LEASE.total_seconds() + 1
        waiting = threading.Thread(target=lambda: (held.lost(), told.set()))
        waiting.start()
        while len(store.objects.names("pins")) != 1 or held.path not in store.objects.find("pins"):
            time.sleep(0.01)
        assert not told.wait(0.2)
    assert told.wait(10)
    waiting.join()


def test_a_store_that_does_not_answer_is_asked_again_at_the_next_turn(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pins, "_RENEWAL_TICK_SECONDS", 0.005)
    monkeypatch.setattr(pins.Pin.renew, "__defaults__", (timedelta(0),))
    asked, replace = list[str](), store.objects.replace

    def fail_at_first(path: str, data: bytes, was: bytes | None) -> bool:
        asked.append(path)
        if len(asked) < 3:
            raise StoreUnreachableError("away")
        return replace(path, data, was)

    monkeypatch.setattr(store.objects, "replace", fail_at_first)
    held = pin(store, [A])
    while len(asked) < 4:
        time.sleep(0.01)
    assert not held.lost()
    held.release()


@pytest.mark.parametrize("position", [0, 10, 40, 90, -2])
def test_a_pin_that_cannot_be_read_is_told_until_it_lapses(position: int, store: Store) -> None:
    with pin(store, [A]) as held:
        flip(Path(store.url) / held.path, position)
        with pytest.raises(CorruptArtifactError, match="is damaged, so that it is not known what a run keeps by it"):
            pinned_ids(store)
        age(store, "pins", PIN_LEASE.total_seconds() + 1)
        assert pinned_ids(store) == frozenset()


def test_a_pin_waits_until_a_sweep_over_it_has_ended(store: Store) -> None:
    done = threading.Event()
    with sweeping(store, [A]):
        waiting = threading.Thread(target=lambda: (pin(store, [A, B]), done.set()))
        waiting.start()
        while not pinned_ids(store):
            time.sleep(0.01)
        assert not done.wait(0.2)
    assert done.wait(10)
    waiting.join()


def test_a_pin_does_not_wait_for_a_sweep_over_others(store: Store) -> None:
    with sweeping(store, [B]):
        made = pin(store, [A])
        assert pinned_ids(store) == {A}
        made.release()


def test_a_killed_collectors_sweep_lapses(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("impart_core.store.pins.time.sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    with sweeping(store, [A]):
        pin(store, [A], clock=lambda: now[0])
        assert SWEEP_LEASE.total_seconds() < now[0] < SWEEP_LEASE.total_seconds() + 2
        age(store, "sweeps", SWEEP_LEASE.total_seconds() + 1)
        (path,) = lapsed(store)
        assert path.startswith("sweeps/")


@pytest.mark.parametrize("data", [b"", b"{", b"5", b"[" * 5000, b"\xff"])
def test_what_is_no_pin_is_left_out(data: bytes, store: Store) -> None:
    pin(store, [A])
    store.objects.create("pins/stranger.json", data)
    assert pinned_ids(store) == {A}
