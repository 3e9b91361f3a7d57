"""Of several that want the same artifact one makes it; whoever died or sleeps holds nobody up."""

import json
import os
import platform
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from impart_core.store import claims
from impart_core.store.claims import CLAIM_LEASE, claimed, dead_claims
from impart_core.store.gc import collect
from impart_core.store.store import Store

A, B = "a" * 64, "b" * 64
LEASE = CLAIM_LEASE.total_seconds()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who wait look often."""
    monkeypatch.setattr(claims, "_POLL_SECONDS", 0.001)


def place(store: Store) -> Path:
    return Path(store.url) / claims.CLAIMS / f"{A}.json"


def read(store: Store) -> dict[str, Any]:
    found = json.loads(place(store).read_bytes())
    assert isinstance(found, dict)
    return found


def leave(store: Store, **own: Any) -> dict[str, Any]:
    """Write a claim of another process: by default one of another machine."""
    claim = {"claim": "1" * 32, "machine": "elsewhere", "process": 1, "renewed": 0, **own}
    store.objects.create(f"{claims.CLAIMS}/{A}.json", json.dumps(claim).encode())
    return claim


def test_one_works_at_a_time_and_others_on_other_artifacts(store: Store) -> None:
    inside, most, done = 0, 0, list[int]()

    def work(number: int) -> None:
        nonlocal inside, most
        with claimed(store, A):
            inside += 1
            most = max(most, inside)
            with claimed(store, B if number == 0 else f"{number:064x}"):
                time.sleep(0.002)
            inside -= 1
            done.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (most, sorted(done)) == (1, list(range(6)))
    assert store.objects.names(claims.CLAIMS) == []


def test_it_is_given_back_when_the_work_fails(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), claimed(store, A):
        raise ZeroDivisionError
    assert store.objects.names(claims.CLAIMS) == []


def test_no_store_holds_the_name_of_a_machine(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: "annas-laptop")
    with claimed(store, A):
        assert b"annas" not in place(store).read_bytes()


def test_a_killed_process_of_this_machine_holds_nobody_up(store: Store) -> None:
    child = os.fork()
    if child == 0:
        with claimed(store, A):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert read(store)["process"] == child
    with claimed(store, A, clock=lambda: 0.0):  # the lease never ends
        assert read(store)["process"] == os.getpid()


@pytest.mark.parametrize("process", [1, 2**80], ids=["somebody else's", "no number of a process"])
def test_a_process_that_may_live_is_waited_for(store: Store, process: int) -> None:
    leave(store, machine=claims._machine(), process=process)
    ticks = iter(range(1000))
    with claimed(store, A, clock=lambda: 10.0 * next(ticks)):
        assert next(ticks) > LEASE / 10


@pytest.mark.parametrize("data", [b"", b"[1]", b"{}", b'{"process": "x"}', b"\xff", b"[" * 4000])
def test_what_cannot_be_read_is_taken_over(store: Store, data: bytes) -> None:
    store.objects.create(f"{claims.CLAIMS}/{A}.json", data)
    with claimed(store, A, clock=lambda: 0.0):
        assert read(store)["process"] == os.getpid()


def test_a_claim_that_is_renewed_is_waited_for_and_one_that_is_not_lapses(store: Store) -> None:
    now, looks, claim = 0.0, 0, leave(store)

    def clock() -> float:
        """Half a lease goes by between two looks; the first ten times its owner renews the claim."""
        nonlocal now, looks
        now, looks = now + 0.5 * LEASE, looks + 1
        if looks <= 10:
            place(store).write_text(json.dumps({**claim, "renewed": looks}))
        return now

    with claimed(store, A, clock):
        assert looks > 11
        assert read(store)["claim"] != claim["claim"]


@pytest.fixture
def _renewed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_RENEWED_EACH_SECONDS", 0.005)


@pytest.mark.usefixtures("_renewed_at_once")
def test_it_is_renewed_for_as_long_as_the_work_lasts(store: Store) -> None:
    with claimed(store, A):
        deadline = time.monotonic() + 30
        while read(store)["renewed"] < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.usefixtures("_renewed_at_once")
def test_whoever_stood_still_leaves_the_claim_to_who_took_over(store: Store) -> None:
    with claimed(store, A):
        place(store).unlink()
        theirs = leave(store)
        time.sleep(0.05)
    assert read(store) == theirs


def test_what_a_killed_process_left_is_cleaned_up_and_what_is_held_is_not(store: Store) -> None:
    leave(store)
    with claimed(store, B):
        assert dead_claims(store) == []
        then = time.time() - timedelta(hours=2).total_seconds()
        os.utime(place(store), (then, then))
        assert dead_claims(store) == [f"{claims.CLAIMS}/{A}.json"]
        collect(store, delete=True)
        assert store.objects.names(claims.CLAIMS) == [f"{B}.json"]
