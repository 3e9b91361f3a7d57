"""Runs and the collector announce first and look second."""

import os
import threading
import time
from pathlib import Path

import pytest

from impart_core.store.pins import PIN_LEASE, SWEEP_LEASE, lapsed, pin, pinned_ids, sweeping
from impart_core.store.store import Store

A, B = "a" * 64, "b" * 64


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def age(store: Store, folder: str, seconds: float) -> None:
    """Make all objects of a folder older."""
    then = time.time() - seconds
    for path in (Path(store.url) / folder).iterdir():
        os.utime(path, (then, then))


def test_what_is_pinned_is_pinned_until_it_is_released(store: Store) -> None:
    assert pinned_ids(store) == frozenset()
    with pin(store, [A]):
        with pin(store, [B]):
            assert pinned_ids(store) == {A, B}
        assert pinned_ids(store) == {A}
    assert pinned_ids(store) == frozenset()


def test_a_killed_runs_pin_lapses(store: Store) -> None:
    pin(store, [A])
    age(store, "pins", PIN_LEASE.total_seconds() - 60)
    assert pinned_ids(store) == {A}
    assert lapsed(store) == []
    age(store, "pins", PIN_LEASE.total_seconds() + 60)
    assert pinned_ids(store) == frozenset()
    (path,) = lapsed(store)
    assert path.startswith("pins/")


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
