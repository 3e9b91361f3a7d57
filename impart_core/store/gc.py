"""Cleaning up: what no name reaches and no run has used lately is deleted.

Kept are the artifacts that a name points to or has pointed to, all that these were made from, whatever is younger than
the grace time, whatever a running flow has pinned (see `pins`), and the measurements of what is kept. An age is the
difference of two times by the store's own clock.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from impart_core.base.errors import CorruptArtifactError
from impart_core.base.settings import Frozen
from impart_core.storage.objects import PROBES, ObjectInfo
from impart_core.store.catalog import DAMAGED, CatalogEntry, forget, reach, scan
from impart_core.store.manifest import MANIFEST, kind_of
from impart_core.store.names import all_moves
from impart_core.store.pins import Pin, lapsed, pinned_ids, sweeping
from impart_core.store.store import Store

DEFAULT_GRACE = timedelta(days=7)
_TAIL = f"/{MANIFEST}"
_SCRATCH_AGE = timedelta(hours=1)  # writing a small object takes seconds: what is older has lost its writer
_SIDE_FOLDERS = ("refs", "catalog", "pins", "sweeps", PROBES)


class GcReport(Frozen):
    """What a collection found, or did.

    Attributes:
        deleted: whether it was done, or only found (dry run).
        kept: number of artifacts that stay.
        artifacts: ids of the artifacts that go, by kind.
        leftovers: number of objects that no manifest names: of writers that were killed, of repairs.
        uploads: number of unfinished uploads.
        bytes: of all that goes.
        complete: whether all of it went; a collection ends early rather than outlast its announcement.
    """

    deleted: bool
    kept: int
    artifacts: dict[str, tuple[str, ...]]
    leftovers: int
    uploads: int
    bytes: int
    complete: bool = True


@dataclass
class _Garbage:
    """What may go: artifacts with all their objects, single objects, uploads."""

    kept: int
    entries: dict[str, CatalogEntry] = field(default_factory=dict)
    objects: dict[str, dict[str, ObjectInfo]] = field(default_factory=dict)
    leftovers: dict[str, ObjectInfo] = field(default_factory=dict)
    uploads: list[str] = field(default_factory=list)

    def both(self, other: "_Garbage") -> "_Garbage":
        """Return what is garbage here and there."""
        return _Garbage(
            kept=other.kept,
            entries={name: entry for name, entry in self.entries.items() if name in other.entries},
            objects={name: found for name, found in self.objects.items() if name in other.objects},
            leftovers={path: info for path, info in self.leftovers.items() if path in other.leftovers},
            uploads=[upload for upload in self.uploads if upload in other.uploads],
        )

    def report(self, *, deleted: bool, complete: bool = True) -> GcReport:
        """Return it as a report."""
        by_kind: dict[str, list[str]] = defaultdict(list)
        for artifact_id, entry in sorted(self.entries.items()):
            by_kind[entry.kind].append(artifact_id)
        sizes = [info.size for found in (*self.objects.values(), self.leftovers) for info in found.values()]
        return GcReport(
            deleted=deleted,
            kept=self.kept,
            artifacts={kind: tuple(ids) for kind, ids in sorted(by_kind.items())},
            leftovers=len(self.leftovers),
            uploads=len(self.uploads),
            bytes=sum(sizes),
            complete=complete,
        )


@dataclass(frozen=True)
class _Look:
    """The objects of every artifact as they were at first, which of these are young, and when what is not was written.

    What is published later is not among them, and cannot be taken for garbage.
    """

    listed: dict[str, dict[str, ObjectInfo]]
    young: frozenset[str]
    oldest: datetime


def collect(
    store: Store, *, grace: timedelta = DEFAULT_GRACE, history: int | None = None, delete: bool = False
) -> GcReport:
    """Find what nothing keeps and, if asked, delete it; safe beside runs that publish and reuse.

    Args:
        store: the store.
        grace: nothing younger goes.
        history: of each name's moves, how many count from the last; None: all, so that every one can be rolled back.
        delete: whether to delete; else nothing is changed.

    Raises:
        ArtifactNotFoundError: nothing lies at the store's place.
        CorruptArtifactError: something that is kept is damaged, so that it is not known what it needs.
    """
    store.require_there()
    look = _look(store, grace)
    found = _mark(store, look, history)
    if not delete:
        return found.report(deleted=False)
    with sweeping(store, {*found.objects, *map(_owner, found.leftovers)}) as deadline:
        # Whoever pinned, named or published something before seeing the sweep is seen now.
        sure = found.both(_mark(store, look, history))
        complete = _delete(store, sure, deadline)
    return sure.report(deleted=True, complete=complete)


def discard(store: Store, artifact_ids: Iterable[str], own: Pin | None = None) -> None:
    """Delete artifacts that are of no more use, but for those that another run has pinned.

    Nothing may point to them. What is not deleted here is left to `collect`.

    Args:
        store: where they are.
        artifact_ids: which.
        own: the pin of the run that has no more use for them, if it still holds them.
    """
    wanted = set(artifact_ids)
    with sweeping(store, wanted) as deadline:
        objects = {name: store.objects.find(f"artifacts/{name}") for name in wanted - pinned_ids(store, own)}
        _delete(store, _Garbage(kept=0, objects=objects), deadline)


def _delete(store: Store, garbage: _Garbage, deadline: float) -> bool:
    """Delete until the deadline: first from the catalogue, then manifests, so that no half is ever seen."""
    forget(store, garbage.objects.keys())
    paths = [path for found in garbage.objects.values() for path in found]
    manifests = [path for path in paths if path.endswith(_TAIL)]
    data = [path for path in paths if not path.endswith(_TAIL)]
    for step in (manifests, data, list(garbage.leftovers)):
        for start in range(0, len(step), 1000):
            if time.monotonic() > deadline:
                return False
            store.objects.delete(step[start : start + 1000])
    store.objects.abort(garbage.uploads)
    store.objects.delete(lapsed(store))
    return True


def _look(store: Store, grace: timedelta) -> _Look:
    listed: dict[str, dict[str, ObjectInfo]] = defaultdict(dict)
    for path, info in store.objects.find("artifacts").items():
        if path.count("/") == 2:
            listed[_owner(path)][path] = info
    oldest = store.objects.now() - grace
    young = {name for name, found in listed.items() if any(info.modified > oldest for info in found.values())}
    return _Look(listed, frozenset(young), oldest)


def _mark(store: Store, look: _Look, history: int | None) -> _Garbage:
    entries, listed, oldest = scan(store), look.listed, look.oldest
    new = entries.keys() - listed.keys()  # published since
    named = {
        entry.id for moves in all_moves(store).values() for entry in (moves if history is None else moves[-history:])
    }
    pinned = pinned_ids(store)
    kept = _reach(entries, named | look.young | new | pinned)
    _require_readable(entries, kept)
    garbage = _Garbage(kept=sum(name in kept for name in entries))
    for name, found in listed.items():
        if name not in kept:
            garbage.objects[name] = found
            if name in entries:
                garbage.entries[name] = entries[name]
    # Of what is pinned nothing is a leftover: it may be under repair, with a file that lies there already.
    settled = {name: listed[name] for name in kept - pinned if name in listed}
    garbage.leftovers = _leftovers(store, entries, settled, oldest)
    garbage.uploads = [name for name, began in store.objects.unfinished().items() if began < oldest]
    return garbage


def _owner(path: str) -> str:
    """Return the artifact that an object lies beside, or whatever else it lies under."""
    return path.split("/")[1]


def _reach(entries: Mapping[str, CatalogEntry], roots: Iterable[str]) -> set[str]:
    """Return the roots, all that they were made from, and what measured any of these."""
    reached = set(reach(roots, lambda name: entries[name].parents if name in entries else ()))
    whole = reached.union(*(entries[name].checkpoints.values() for name in reached if name in entries))
    measured = {
        name: {*entry.parents, *entry.checkpoints.values()}
        for name, entry in entries.items()
        if (kind := kind_of(entry.kind)) and kind.measures
    }
    return reached | {name for name, models in measured.items() if models and models <= whole}


def _require_readable(entries: Mapping[str, CatalogEntry], kept: Iterable[str]) -> None:
    damaged = sorted(name[:12] for name in kept if name in entries and entries[name].kind == DAMAGED)
    if damaged:
        raise CorruptArtifactError(
            f"The manifests of {', '.join(damaged)} are damaged, so that it is not known what they need, and nothing "
            "was deleted. Compress with the same settings again to make them anew, or delete them."
        )


def _leftovers(
    store: Store,
    entries: Mapping[str, CatalogEntry],
    kept: Mapping[str, Mapping[str, ObjectInfo]],
    oldest: datetime,
) -> dict[str, ObjectInfo]:
    """Return the old objects that no manifest names: beside whole artifacts, and scratch of killed writers."""
    odd = [name for name, found in kept.items() if name in entries and len(found) != entries[name].files + 1]
    leftovers = {}
    for name, manifest in store.manifests(odd):
        if manifest:
            own = {f"artifacts/{name}/{path}" for path in (MANIFEST, *(file.path for file in manifest.files))}
            found = kept[name].items()
            leftovers.update({path: info for path, info in found if path not in own and info.modified <= oldest})
    dead = store.objects.now() - _SCRATCH_AGE
    for folder in _SIDE_FOLDERS:
        found = store.objects.find(folder).items()
        scratch = {path: info for path, info in found if folder == PROBES or path.rpartition("/")[2].startswith(".")}
        leftovers.update({path: info for path, info in scratch.items() if info.modified <= min(oldest, dead)})
    return leftovers
