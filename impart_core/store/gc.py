"""Cleaning up: what no name reaches and no run has used lately is deleted.

Kept are the artifacts that a name points to or has pointed to, whatever is younger than the grace time (see
`retention` for the rules), whatever a running flow has pinned (see `pins`), all that these were made from, and the
measurements of what is kept. An age is the difference of two times by the store's own clock.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from impart_core.base.errors import ConfigError, CorruptArtifactError
from impart_core.base.settings import Frozen
from impart_core.storage.objects import PROBES, ObjectInfo
from impart_core.store.catalog import DAMAGED, CatalogEntry, read_entry, scan
from impart_core.store.claims import CLAIMS
from impart_core.store.manifest import MANIFEST, kind_of
from impart_core.store.names import all_logs
from impart_core.store.pins import pinned_ids, sweeping
from impart_core.store.refs import Log
from impart_core.store.retention import (
    NEW,
    PINNED,
    YOUNG,
    Kept,
    KeptArtifact,
    RuleReport,
    Rules,
    require_fitting,
    roots_of,
)
from impart_core.store.store import Store
from impart_core.store.sweep import Garbage, delete_garbage, moves_in, owner_of

_ID = re.compile(r"[0-9a-f]{64}")
_SCRATCH_AGE = timedelta(hours=1)  # writing a small object takes seconds: what is older has lost its writer
SIDE_FOLDERS = ("refs", "catalog", "pins", "sweeps", CLAIMS, PROBES)


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
        kept_by: what each rule keeps that none before it does.
        listed: the artifacts that stay and that people look for, and why each stays.
    """

    deleted: bool
    kept: int
    artifacts: dict[str, tuple[str, ...]]
    leftovers: int
    uploads: int
    bytes: int
    complete: bool = True
    kept_by: tuple[RuleReport, ...] = ()
    listed: tuple[KeptArtifact, ...] = ()


@dataclass(frozen=True)
class _Look:
    """The objects of every artifact as they were at first, which of these are young, and when what is not was written.

    What is published later is not among them, and cannot be taken for garbage.
    """

    listed: dict[str, dict[str, ObjectInfo]]
    young: frozenset[str]
    oldest: datetime


class _Known(NamedTuple):
    """An artifact whose manifest was read, and the ids of the artifacts that it consists of."""

    entry: CatalogEntry
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Survey:
    """What lies in a store, and what of it could go.

    Attributes:
        objects: those of every artifact, by id and path.
        entries: of the artifacts that have a manifest, by id.
        garbage: what could go at once if nothing ran; None: it is not known.
        trouble: why it is not.
    """

    objects: Mapping[str, Mapping[str, ObjectInfo]]
    entries: Mapping[str, CatalogEntry]
    garbage: Garbage | None
    trouble: str = ""


def collect(
    store: Store,
    rules: Rules = Rules(),  # noqa: B008 - frozen
    *,
    delete: bool = False,
    everything: bool = False,
) -> GcReport:
    """Find what nothing keeps and, if asked, delete it; safe beside runs that publish and reuse.

    Args:
        store: the store.
        rules: what is kept beside what names point to and running flows need.
        delete: whether to delete; else nothing is changed.
        everything: whether it may delete all artifacts that there are.

    Raises:
        ArtifactNotFoundError: nothing lies at the store's place.
        ConfigError: a pattern of the rules fits no name, or no artifact would stay.
        CorruptArtifactError: a name dangles, or a move, a pin, or the manifest of something that is kept is damaged,
            so that it is not known what is needed.
    """
    store.require_there()
    look, known = _look(store, rules.grace), dict[str, _Known]()
    found = _mark(store, look, rules, known)
    if not delete:
        return _report(found, look, rules, known, deleted=False)
    if found.entries and not everything and not any(name in found.kept.via for name in known):
        raise ConfigError(
            f"All {len(found.entries)} artifacts of {store.url} would go, for no name keeps any, and nothing was "
            "deleted. Name what is to stay (`impart tag REF NAME`); to delete everything, use --everything."
        )
    with sweeping(store, found.ids()) as sweep:
        # Whoever pinned, named or published something before seeing the sweep is seen now.
        sure = found.both(_mark(store, look, rules, known))
        complete = delete_garbage(store, sure, sweep)
    return _report(sure, look, rules, known, deleted=True, complete=complete)


def survey(store: Store) -> Survey:
    """Return what lies in a store, and what of it no name reaches and no run needs, however young it is.

    Manifests that the catalogue knows are not read: nothing is deleted by this.

    Raises:
        ArtifactNotFoundError: nothing lies at the store's place.
    """
    store.require_there()
    rules, entries = Rules(grace_days=0), scan(store)
    look = _look(store, rules.grace)
    try:
        garbage = _mark(store, look, rules, {name: _Known(entry, ()) for name, entry in entries.items()})
    except CorruptArtifactError as error:
        return Survey(look.listed, entries, None, str(error))
    return Survey(look.listed, entries, garbage)


def _report(
    garbage: Garbage, look: _Look, rules: Rules, known: Mapping[str, _Known], *, deleted: bool, complete: bool = True
) -> GcReport:
    by_kind: dict[str, list[str]] = defaultdict(list)
    for artifact_id, entry in sorted(garbage.entries.items()):
        by_kind[entry.kind].append(artifact_id)
    sizes = [info.size for found in (*garbage.objects.values(), garbage.leftovers) for info in found.values()]
    there = {name: sum(info.size for info in look.listed.get(name, {}).values()) for name in known}
    return GcReport(
        deleted=deleted,
        kept=sum(name in garbage.kept.via for name in known),
        artifacts={kind: tuple(ids) for kind, ids in sorted(by_kind.items())},
        leftovers=len(garbage.leftovers),
        uploads=len(garbage.uploads),
        bytes=sum(sizes),
        complete=complete,
        kept_by=garbage.kept.by_rule(rules, there),
        listed=garbage.kept.listed(rules, {name: found.entry for name, found in known.items()}),
    )


def _look(store: Store, grace: timedelta) -> _Look:
    listed: dict[str, dict[str, ObjectInfo]] = defaultdict(dict)
    for path, info in store.objects.find("artifacts").items():
        if path.count("/") == 2:
            listed[owner_of(path)][path] = info
    oldest = store.objects.now() - grace
    young = {name for name, found in listed.items() if any(info.modified > oldest for info in found.values())}
    return _Look(listed, frozenset(young), oldest)


def _mark(store: Store, look: _Look, rules: Rules, known: dict[str, _Known]) -> Garbage:
    # A run pins, publishes, names, and takes its pin back: read in this order, one of the three shows what it made.
    pinned, logs = pinned_ids(store), all_logs(store)
    require_fitting(rules, logs, store.url)
    _read_manifests(store, known)
    entries = {name: found.entry for name, found in known.items()}
    listed, oldest = look.listed, look.oldest
    others = {YOUNG: look.young, NEW: entries.keys() - listed.keys(), PINNED: pinned}
    roots = roots_of(logs, rules, store.objects.now(), others)
    kept = _reach(entries, roots)
    _require_whole(store, logs, known)
    _require_readable(entries, kept)
    moves = moves_in({name: log.numbers for name, log in logs.items()})
    garbage = Garbage(kept=Kept(roots, kept), moves=moves)
    for name, found in listed.items():
        if name not in kept:
            garbage.objects[name] = found
            if name in entries:
                garbage.entries[name] = entries[name]
    # Of what is pinned nothing is a leftover: it may be under repair, with a file that lies there already.
    settled = {name: listed[name] for name in kept.keys() - pinned if name in listed}
    garbage.leftovers = _leftovers(store, entries, settled, oldest)
    garbage.uploads = [name for name, began in store.objects.unfinished().items() if began < oldest]
    return garbage


def _read_manifests(store: Store, known: dict[str, _Known]) -> None:
    """Read the manifests that are not known yet; the catalogue may be wrong, and what goes by it is gone for good."""
    present = [name for name in store.objects.names("artifacts") if _ID.fullmatch(name)]
    for name in known.keys() - set(present):
        del known[name]
    for name, manifest in store.manifests(name for name in present if name not in known):
        parts = manifest.content.pointers() if manifest else ()
        known[name] = _Known(read_entry(store, name, manifest), tuple(part.id for part in parts))


def _require_whole(store: Store, logs: Mapping[str, Log], known: Mapping[str, _Known]) -> None:
    """Refuse to go on while a name points to what is not there, or lacks a part: what that needs is not known."""
    faults = []
    for name, log in logs.items():
        top = log.moves[-1].id
        parts = known[top].parts if top in known else ()
        if lost := [part for part in (top, *parts) if part not in known]:
            what = "it" if top in lost else f"its part {lost[0][:12]}"
            faults.append(
                f"{name!r} points to {top[:12]}, and {what} is lost. Compress with the same settings again to make it "
                f"anew, or let go of it: `impart tag REF {name}` points the name elsewhere, `impart untag {name}` "
                "removes it."
            )
    if faults:
        raise CorruptArtifactError(f"Names of {store.url} dangle, and nothing was deleted. {' '.join(faults)}")


def _reach(entries: Mapping[str, CatalogEntry], roots: Iterable[str]) -> dict[str, str | None]:
    """Return the roots, all that they were made from, what gave their checkpoints, and what measured any of these.

    Each stands with the id that it was reached from, a root with None.
    """
    givers: dict[str, list[str]] = {}
    for name, entry in entries.items():
        kind = kind_of(entry.kind)
        if kind and kind.gives in entry.checkpoints:
            givers.setdefault(entry.checkpoints[str(kind.gives)], []).append(name)
    reached: dict[str, str | None] = dict.fromkeys(roots)
    waiting = list(reached)
    for name in waiting:
        if name not in entries:
            continue
        checkpoints = entries[name].checkpoints.values()
        for needed in (*entries[name].parents, *(giver for one in checkpoints for giver in givers.get(one, ()))):
            if needed not in reached:
                reached[needed] = name
                waiting.append(needed)
    users = {one: name for name in reached if name in entries for one in entries[name].checkpoints.values()}
    measurements: dict[str, str | None] = {}  # apart: one that measures another does not stay for it, in any order
    for name, entry in entries.items():
        kind = kind_of(entry.kind)
        models = {*entry.parents, *entry.checkpoints.values()}
        if not (kind and kind.measures and models) or name in reached:
            continue
        if all(model in reached or model in users for model in models):
            measured = min(models)
            measurements[name] = measured if measured in reached else users[measured]
    return reached | measurements


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
    for folder in SIDE_FOLDERS:
        found = store.objects.find(folder).items()
        scratch = {path: info for path, info in found if folder == PROBES or path.rpartition("/")[2].startswith(".")}
        leftovers.update({path: info for path, info in scratch.items() if info.modified <= min(oldest, dead)})
    return leftovers
