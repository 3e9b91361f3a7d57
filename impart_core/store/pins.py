"""What keeps the garbage collector and running work out of each other's way, without a lock.

pins/<uuid>.json      written by a run before it looks for what it may reuse: nobody deletes these ids meanwhile
sweeps/<uuid>.json    written by the collector before it looks at the pins: these ids are about to be deleted

Each side announces first and looks second, so that of a run and a collector that meet at least one sees the other: the
collector spares what is pinned, and a run waits until a sweep over what it pinned has ended. A run renews its pin for
as long as it lives. What a killed process leaves lapses by itself: a pin after half an hour, a sweep after two minutes.
"""

import json
import logging
import re
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

from impart_core.base.canonical import canonical_json, digest_of
from impart_core.base.clock import seconds_awake_or_asleep
from impart_core.base.errors import CorruptArtifactError, StoreError
from impart_core.store.store import Store

logger = logging.getLogger(__name__)

PIN_LEASE = timedelta(minutes=30)
PIN_RENEWED_EACH = timedelta(minutes=5)
SWEEP_LEASE = timedelta(minutes=2)
_PINS, _SWEEPS = "pins", "sweeps"
_OURS = re.compile(r"[0-9a-f]{32}\.json")
_LARGEST = 64 << 20
_POLL_SECONDS = 0.5
_RENEWAL_TICK_SECONDS = 10.0  # a wait takes no account of the time that the machine sleeps


class Pin:
    """Ids that a run may reuse, pinned until they are released: at the end of a `with` block, or by hand.

    A thread renews the pin for as long as somebody holds this object. A run that was stopped for longer than the
    lease, by Ctrl-Z or a laptop's lid, has lost what it pinned: it pins it again, and `lost` tells.
    """

    def __init__(self, store: Store, artifact_ids: Iterable[str]) -> None:
        """Announce that the ids are pinned."""
        self.store, self.ids = store, frozenset(artifact_ids)
        self._lost, self._ended, self._lock = False, threading.Event(), threading.Lock()
        self._renewed = seconds_awake_or_asleep()
        self.path = _announce(store, _PINS, self.ids)
        weakref.finalize(self, self._ended.set)
        threading.Thread(target=_keep_renewing, args=(weakref.ref(self), self._ended), daemon=True).start()

    def release(self) -> None:
        """Let the collector have what nothing else keeps; a pin that cannot be taken back lapses."""
        self._ended.set()
        with self._lock, suppress(StoreError):
            self.store.objects.delete([self.path])

    def renew(self, every: timedelta = PIN_RENEWED_EACH) -> None:
        """Write the pin again if it has not been for a while; make it anew where it has lapsed or is gone."""
        with self._lock:
            now = seconds_awake_or_asleep()
            if self._ended.is_set() or now - self._renewed < every.total_seconds():
                return
            data = _sealed(self.ids)
            present = self.store.objects.read(self.path, len(data) + 1)
            if now - self._renewed > PIN_LEASE.total_seconds() or present != data:
                logger.warning("This run was stopped for so long that what it may reuse was not kept. It goes on.")
                self._lost, lapsed_path = True, self.path
                self.path = _announce(self.store, _PINS, self.ids)
                self.store.objects.delete([lapsed_path])
            elif not self.store.objects.replace(self.path, data, data):
                return  # the next turn finds out why
            self._renewed = now

    def lost(self) -> bool:
        """Return whether the ids have ever been without a pin, so that what was found must be looked for again.

        Where they were, a sweep over them that is under way is waited for first.
        """
        self.renew(PIN_LEASE)
        if self._lost:
            _wait_for_sweeps(self.store, self.ids, time.monotonic)
        return self._lost

    def __enter__(self) -> "Pin":
        """Return the pin."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release it."""
        self.release()


def _keep_renewing(held: "weakref.ref[Pin]", ended: threading.Event) -> None:
    """Renew a pin until it is released, or nobody holds it any more."""
    while not ended.wait(_RENEWAL_TICK_SECONDS):
        pinned = held()
        if pinned is None:
            return
        with suppress(StoreError):  # a store that does not answer may do so at the next turn
            pinned.renew()
        del pinned


def pin(store: Store, artifact_ids: Iterable[str], clock: Callable[[], float] = time.monotonic) -> Pin:
    """Keep artifacts, whether they are there yet or not, from being deleted; wait for a sweep over them to end.

    Args:
        store: where they are.
        artifact_ids: which.
        clock: seconds, by which the sweep of a killed collector lapses.
    """
    made = Pin(store, artifact_ids)
    _wait_for_sweeps(store, made.ids, clock)
    return made


def _wait_for_sweeps(store: Store, wanted: frozenset[str], clock: Callable[[], float]) -> None:
    first_seen: dict[str, float] = {}
    while True:
        sweeps = {path for path, ids in _announced(store, _SWEEPS).items() if ids is None or ids & wanted}
        for path in sweeps:
            first_seen.setdefault(path, clock())
        waited = {path for path in sweeps if clock() - first_seen[path] > SWEEP_LEASE.total_seconds()}
        if sweeps <= waited or sweeps <= {*waited, *lapsed(store)}:
            return
        time.sleep(_POLL_SECONDS)


@dataclass(frozen=True)
class Sweep:
    """An announcement that artifacts may be deleted, which holds for a while only.

    Attributes:
        store: where.
        path: the announcement.
        ends: until when it may be relied on, by `seconds_awake_or_asleep`.
    """

    store: Store
    path: str
    ends: float

    def in_time(self) -> bool:
        """Return whether it may still be relied on by this machine's clock; nothing is asked of the store."""
        return seconds_awake_or_asleep() < self.ends

    def in_force(self) -> bool:
        """Return whether it is there still, by the store's clock, too: else runs no longer wait for it."""
        info = self.store.objects.find(_SWEEPS).get(self.path)
        return info is not None and self.store.objects.now() - info.modified < SWEEP_LEASE and self.in_time()


@contextmanager
def sweeping(store: Store, artifact_ids: Iterable[str]) -> Iterator[Sweep]:
    """Announce for as long as the block lasts that artifacts may be deleted."""
    ends = seconds_awake_or_asleep() + 0.8 * SWEEP_LEASE.total_seconds()
    path = _announce(store, _SWEEPS, frozenset(artifact_ids))
    try:
        yield Sweep(store, path, ends)
    finally:
        with suppress(StoreError):
            store.objects.delete([path])


def pinned_ids(store: Store, but: Pin | None = None) -> frozenset[str]:
    """Return all ids that are pinned, but for pins that have lapsed, and perhaps for one.

    Raises:
        CorruptArtifactError: a pin cannot be read, so that it is not known what it keeps.
    """
    found = _announced(store, _PINS, {*lapsed(store), *([but.path] if but else [])})
    damaged = [path for path, ids in found.items() if ids is None]
    if damaged:
        raise CorruptArtifactError(
            f"{store.url.rstrip('/')}/{damaged[0]} is damaged, so that it is not known what a run keeps by it, and "
            f"nothing was deleted. It lapses {PIN_LEASE.total_seconds() / 60:g} minutes after its run has ended: try "
            "again then, or delete it if no run is using the store."
        )
    return frozenset().union(*(ids for ids in found.values() if ids))


def lapsed(store: Store) -> list[str]:
    """Return the paths of pins and sweeps that killed processes left and that hold no more."""
    now = store.objects.now()
    return [
        path
        for folder, lease in ((_PINS, PIN_LEASE), (_SWEEPS, SWEEP_LEASE))
        for path, info in store.objects.find(folder).items()
        if now - info.modified > lease
    ]


def _announce(store: Store, folder: str, ids: frozenset[str]) -> str:
    path = f"{folder}/{uuid.uuid4().hex}.json"
    store.objects.create(path, _sealed(ids))
    return path


def _sealed(ids: frozenset[str]) -> bytes:
    return canonical_json({"ids": sorted(ids), "seal": digest_of(sorted(ids))})


def _announced(store: Store, folder: str, but: Iterable[str] = ()) -> dict[str, frozenset[str] | None]:
    """Return the ids of what was announced in a folder, None where it cannot be read; what is not ours is left out."""
    paths = {f"{folder}/{name}" for name in store.objects.names(folder) if _OURS.fullmatch(name)}
    return {path: _ids_of(data) for path, data in store.objects.read_many(sorted(paths - set(but)), _LARGEST).items()}


def _ids_of(data: bytes) -> frozenset[str] | None:
    with suppress(ValueError, TypeError, RecursionError, KeyError):
        ids = frozenset(map(str, json.loads(data)["ids"]))
        if data == _sealed(ids):
            return ids
    return None
