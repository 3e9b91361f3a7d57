"""Claims: of several that want the same artifact at the same moment, one makes it and the others wait for it.

claims/<id>.json   written by whoever makes the artifact, again each ten seconds, and deleted at the end

Nothing relies on a claim: two that make the same artifact at once publish the same bytes, and one manifest is in force.
A claim saves work that takes minutes. So it gives way rather than hold anybody up: one that was not renewed for a
minute by the watch of who waits is taken over, and one of a process of this machine that has ended is so at once.
"""

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from impart_core.base.canonical import canonical_json, digest_of
from impart_core.base.errors import StoreError
from impart_core.store.store import Store

CLAIM_LEASE = timedelta(minutes=1)
CLAIMS = "claims"
_RENEWED_EACH_SECONDS = 10.0
_POLL_SECONDS, _SOON_SECONDS = 0.5, 0.01  # between looks, and where it has just been released
_LARGEST = 1 << 12
_DEAD = timedelta(hours=1)  # by the store's clock, with a wide margin: nobody waits for this


class _Claim:
    """A claim that is held: a thread writes it again and again until it is released, or somebody else has it."""

    def __init__(self, store: Store, path: str, data: bytes) -> None:
        self._store, self._path, self._data = store, path, data
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, name="claim", daemon=True)
        self._thread.start()

    def _keep_renewing(self) -> None:
        while not self._ended.wait(_RENEWED_EACH_SECONDS):
            with suppress(StoreError):  # a store that does not answer may do so at the next turn
                if self._store.objects.read(self._path, _LARGEST) != self._data:
                    return  # this process stood still, and another one took over
                data = _renewed(self._data)
                if self._store.objects.replace(self._path, data, self._data):
                    self._data = data

    def release(self) -> None:
        self._ended.set()
        self._thread.join()
        with suppress(StoreError):  # it lapses
            if self._store.objects.read(self._path, _LARGEST) == self._data:
                self._store.objects.delete([self._path])


@contextmanager
def claimed(store: Store, artifact_id: str, clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Wait until nobody else makes an artifact, and keep others waiting for as long as the block lasts.

    What was made by whom was waited for is in the store then: look for it inside the block.

    Args:
        store: where the artifact goes.
        artifact_id: which.
        clock: seconds, by which a claim that is not renewed lapses.
    """
    path = f"{CLAIMS}/{artifact_id}.json"
    held = _Claim(store, path, _taken(store, path, clock))
    try:
        yield
    finally:
        held.release()


def dead_claims(store: Store) -> list[str]:
    """Return the paths of claims that killed processes left, and that nobody has asked for since."""
    found = store.objects.find(CLAIMS)
    now = store.objects.now() if found else None
    return [path for path, info in found.items() if now and now - info.modified > _DEAD]


def _taken(store: Store, path: str, clock: Callable[[], float]) -> bytes:
    """Take a claim once it is free; return what stands in it."""
    own, theirs, since = _new(), None, clock()
    while not store.objects.create(path, own):
        before, theirs = theirs, store.objects.read(path, _LARGEST)
        if theirs != before:
            since = clock()
        over = _is_over(theirs) or clock() - since > CLAIM_LEASE.total_seconds()
        if over and store.objects.replace(path, own, theirs):
            break
        time.sleep(_POLL_SECONDS if theirs else _SOON_SECONDS)
    return own


def _new() -> bytes:
    return canonical_json({"claim": uuid.uuid4().hex, "machine": _machine(), "process": os.getpid(), "renewed": 0})


def _renewed(data: bytes) -> bytes:
    claim = json.loads(data)
    return canonical_json({**claim, "renewed": claim["renewed"] + 1})


def _machine() -> str:
    """Return what tells apart where processes are numbered: machines, and containers that share a machine's name.

    It is a digest, for no store holds the names of machines.
    """
    space = ""
    with suppress(OSError):
        space = str(Path("/proc/self/ns/pid").readlink())
    return digest_of([platform.node(), space])


def _is_over(data: bytes | None) -> bool:
    """Return whether a claim that is there cannot be read, or its process has ended on this machine.

    A mistake costs time only: a process that got the number of one that has ended is waited for until the lease ends.
    """
    if data is None:
        return False
    claim: Any = None
    with suppress(ValueError, RecursionError):
        claim = json.loads(data)
    if not isinstance(claim, dict) or not isinstance(claim.get("process"), int):
        return True
    if claim.get("machine") != _machine():
        return False
    try:
        os.kill(claim["process"], 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # somebody else's, or no number that a process has
        pass
    return False
