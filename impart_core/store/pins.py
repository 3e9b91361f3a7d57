"""What keeps the garbage collector and running work out of each other's way, without a lock.

pins/<uuid>.json      written by a run before it looks for what it may reuse: nobody deletes these ids meanwhile
sweeps/<uuid>.json    written by the collector before it looks at the pins: these ids are about to be deleted

Each side announces first and looks second, so that of a run and a collector that meet at least one sees the other: the
collector spares what is pinned, and a run waits until a sweep over what it pinned has ended. What a killed process
leaves lapses by itself: a pin after seven days, a sweep after two minutes.
"""

import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

from impart_core.base.canonical import canonical_json
from impart_core.base.errors import StoreError
from impart_core.store.store import Store

PIN_LEASE = timedelta(days=7)
SWEEP_LEASE = timedelta(minutes=2)
_PINS, _SWEEPS = "pins", "sweeps"
_LARGEST = 64 << 20
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Pin:
    """Ids that a run may reuse, pinned until they are released: at the end of a `with` block, or by hand."""

    store: Store
    path: str

    def release(self) -> None:
        """Let the collector have what nothing else keeps; a pin that cannot be taken back lapses."""
        with suppress(StoreError):
            self.store.objects.delete([self.path])

    def __enter__(self) -> "Pin":
        """Return the pin."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release it."""
        self.release()


def pin(store: Store, artifact_ids: Iterable[str], clock: Callable[[], float] = time.monotonic) -> Pin:
    """Keep artifacts, whether they are there yet or not, from being deleted; wait for a sweep over them to end.

    Args:
        store: where they are.
        artifact_ids: which.
        clock: seconds, by which the sweep of a killed collector lapses.
    """
    wanted = frozenset(artifact_ids)
    made = Pin(store, _announce(store, _PINS, wanted))
    first_seen: dict[str, float] = {}
    while True:
        sweeps = {path: ids for path, ids in _announced(store, _SWEEPS).items() if ids & wanted}
        for path in sweeps:
            first_seen.setdefault(path, clock())
        if all(clock() - first_seen[path] > SWEEP_LEASE.total_seconds() for path in sweeps):
            return made
        time.sleep(_POLL_SECONDS)


@contextmanager
def sweeping(store: Store, artifact_ids: Iterable[str]) -> Iterator[float]:
    """Announce for as long as the block lasts that artifacts may be deleted; give when that must end (monotonic)."""
    deadline = time.monotonic() + 0.8 * SWEEP_LEASE.total_seconds()
    path = _announce(store, _SWEEPS, frozenset(artifact_ids))
    try:
        yield deadline
    finally:
        with suppress(StoreError):
            store.objects.delete([path])


def pinned_ids(store: Store, but: Pin | None = None) -> frozenset[str]:
    """Return all ids that are pinned, but for pins that have lapsed, and perhaps for one."""
    return frozenset().union(*_announced(store, _PINS, {*lapsed(store), *([but.path] if but else [])}).values())


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
    store.objects.create(path, canonical_json(sorted(ids)))
    return path


def _announced(store: Store, folder: str, but: Iterable[str] = ()) -> dict[str, frozenset[str]]:
    paths = {f"{folder}/{name}" for name in store.objects.names(folder) if name.endswith(".json")}
    found = {}
    for path, data in store.objects.read_many(sorted(paths - set(but)), _LARGEST).items():
        with suppress(ValueError, TypeError, RecursionError):  # nothing of ours
            found[path] = frozenset(map(str, json.loads(data)))
    return found
