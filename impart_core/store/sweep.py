"""Deleting what is garbage: in an order that leaves no half at any moment, and with an eye on who begins to use it.

A collector may be stopped at any point and go on days later, on a laptop that slept. So it looks at its own
announcement, at the pins and at the names before each batch, and at a clock before every request.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from impart_core.base.errors import CorruptArtifactError
from impart_core.storage.objects import ObjectInfo
from impart_core.store.catalog import CatalogEntry, forget
from impart_core.store.claims import dead_claims
from impart_core.store.manifest import MANIFEST
from impart_core.store.pins import Pin, Sweep, lapsed, pinned_ids, sweeping
from impart_core.store.refs import all_numbers, read_logs
from impart_core.store.retention import Kept
from impart_core.store.store import Store

Moves = frozenset[tuple[str, int]]  # names and numbers

_BATCH = 100
_TAIL = f"/{MANIFEST}"


@dataclass
class Garbage:
    """What may go: artifacts with all their objects, single objects, uploads.

    Attributes:
        kept: what stays, and why.
        moves: those of all names by which it was found.
        entries: of the artifacts that go, where their manifests can be read, by id.
        objects: of the artifacts that go, by id and path.
        leftovers: objects that no manifest names, by path.
        uploads: that were never finished.
    """

    kept: Kept
    moves: Moves = frozenset()
    entries: dict[str, CatalogEntry] = field(default_factory=dict)
    objects: dict[str, dict[str, ObjectInfo]] = field(default_factory=dict)
    leftovers: dict[str, ObjectInfo] = field(default_factory=dict)
    uploads: list[str] = field(default_factory=list)

    def both(self, other: "Garbage") -> "Garbage":
        """Return what is garbage here and in a later look."""
        return Garbage(
            kept=other.kept,
            moves=other.moves,
            entries={name: entry for name, entry in self.entries.items() if name in other.entries},
            objects={name: found for name, found in self.objects.items() if name in other.objects},
            leftovers={path: info for path, info in self.leftovers.items() if path in other.leftovers},
            uploads=[upload for upload in self.uploads if upload in other.uploads],
        )

    def ids(self) -> frozenset[str]:
        """Return the artifacts that are touched."""
        return frozenset({*self.objects, *map(owner_of, self.leftovers)})


def owner_of(path: str) -> str:
    """Return the artifact that an object lies beside, or whatever else it lies under."""
    return path.split("/")[1]


def delete_garbage(store: Store, garbage: Garbage, sweep: Sweep, own: Pin | None = None) -> bool:
    """Delete, and return whether all of it went: it ends early when the sweep lapses or something is used again.

    Manifests go first, of what was made from others before those others, and data after all manifests. So a
    collector that is killed leaves nothing that lacks a part, and nothing without its data.

    Args:
        store: where.
        garbage: what.
        sweep: the announcement.
        own: the pin of the run that has no more use for it, if it still holds it.
    """
    forget(store, garbage.objects.keys())
    paths = [path for found in garbage.objects.values() for path in found if not path.endswith(_TAIL)]
    steps = [*_manifests_in_order(garbage), paths, list(garbage.leftovers)]
    for batch in (step[start : start + _BATCH] for step in steps for start in range(0, len(step), _BATCH)):
        if not _may_go_on(store, garbage, sweep, own):
            return False
        for some in ([path] for path in batch) if store.objects.is_local else [batch]:
            if not sweep.in_time():
                return False
            store.objects.delete(some)
    if not sweep.in_time():
        return False
    store.objects.abort(garbage.uploads)
    store.objects.delete([*lapsed(store), *dead_claims(store)])
    return True


def discard(store: Store, artifact_ids: Iterable[str], own: Pin | None = None) -> None:
    """Delete artifacts that are of no more use, but for those that another run has pinned.

    Nothing may point to them. What is not deleted here is left to `gc.collect`.

    Args:
        store: where they are.
        artifact_ids: which.
        own: the pin of the run that has no more use for them, if it still holds them.
    """
    wanted = set(artifact_ids)
    with sweeping(store, wanted) as sweep:
        moves = moves_in(all_numbers(store))
        objects = {name: store.objects.find(f"artifacts/{name}") for name in wanted - pinned_ids(store, own)}
        delete_garbage(store, Garbage(kept=Kept(), moves=moves, objects=objects), sweep, own)


def moves_in(numbers: Mapping[str, Collection[int]]) -> Moves:
    """Return moves as a set."""
    return frozenset((name, number) for name, own in numbers.items() for number in own)


def _may_go_on(store: Store, garbage: Garbage, sweep: Sweep, own: Pin | None) -> bool:
    """Return whether nothing of the garbage has been pinned or named since, and the sweep holds."""
    touched = garbage.ids()
    try:
        return not (_named_since(store, garbage.moves) | pinned_ids(store, own)) & touched and sweep.in_force()
    except CorruptArtifactError:
        return False


def _named_since(store: Store, known: Moves) -> frozenset[str]:
    """Return what names were moved to since a look; one that cannot be read raises a CorruptArtifactError."""
    new: dict[str, list[int]] = defaultdict(list)
    for name, number in sorted(moves_in(all_numbers(store)) - known):
        new[name].append(number)
    logs = list(read_logs(store, new).values())
    damaged = [log for log in logs if log.damaged]
    if damaged:
        raise CorruptArtifactError(damaged[0].trouble())
    return frozenset(move.id for log in logs for move in log.moves)


def _manifests_in_order(garbage: Garbage) -> Iterator[list[str]]:
    """Yield the manifests in steps, each artifact in a later step than all that were made from it."""
    left = dict(garbage.objects)
    parents = {name: [up for up in set(entry.parents) if up in left] for name, entry in garbage.entries.items()}
    uses = Counter(parent for own in parents.values() for parent in own)
    while left:
        # Those in a circle, which only a forged manifest can make, go at last all at once.
        free = [name for name in left if not uses[name]] or list(left)
        yield [path for name in free for path in left.pop(name) if path.endswith(_TAIL)]
        uses.subtract(parent for name in free for parent in parents.get(name, ()))
