"""What a store holds in bytes: by kind, by model, by base and by owner, read from one listing and the catalogue.

Artifacts are shared: blocks by deltas, decompositions by ratios. So each group is told what is its own alone, what it
shares with other groups, and what all of it would take if every artifact had copies of the parts that it consists of.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from impart_core.artifacts.delta import DeltaContent
from impart_core.artifacts.zoo_run import owners_of
from impart_core.base.errors import unknown_name
from impart_core.base.settings import Frozen
from impart_core.base.text import without_secrets
from impart_core.store.catalog import CatalogEntry, reach
from impart_core.store.gc import SIDE_FOLDERS, survey
from impart_core.store.manifest import kind_of
from impart_core.store.names import names_by_id
from impart_core.store.store import Store

GROUPINGS = ("kind", "model", "base", "owner")
NOBODY = "(none)"


class Group(Frozen):
    """The artifacts of a kind, a model, a base or an owner.

    Attributes:
        key: the kind, the checkpoint's id, or the owner; `(none)` for what belongs to none.
        label: the same for people.
        artifacts: how many there are, those that it shares included.
        alone: bytes of those that no other group has.
        shared: bytes of those that others have as well.
        undeduplicated: bytes if each of its artifacts had a copy of all parts that it consists of.
        dense: bytes of the fine-tuned checkpoints that its deltas stand for, each counted once.
        unreachable: bytes of those that no name reaches and no run needs.
    """

    key: str
    label: str
    artifacts: int = 0
    alone: int = 0
    shared: int = 0
    undeduplicated: int = 0
    dense: int = 0
    unreachable: int = 0


class StoreUsage(Frozen):
    """What a store holds.

    Attributes:
        store: its URL.
        by: what groups are of.
        groups: the groups, the largest first.
        bytes: every byte in the store.
        objects: the number of its objects.
        artifacts: the number of artifacts.
        artifact_bytes: their bytes.
        shared: those of the artifacts that are in several groups.
        undeduplicated: what they would take if each had a copy of all parts that it consists of.
        dense: bytes of the fine-tuned checkpoints that deltas stand for, each counted once.
        unreachable: what `impart gc --grace 0s` would free now; None: it is not known.
        leftovers: bytes beside artifacts that have no manifest.
        names: bytes of names, with all their moves.
        catalogue: bytes of the catalogue.
        running: bytes that running and killed flows and collectors announce themselves by.
        trouble: why it is not known what could be freed.
    """

    store: str
    by: str
    groups: tuple[Group, ...]
    bytes: int
    objects: int
    artifacts: int
    artifact_bytes: int
    shared: int
    undeduplicated: int
    dense: int
    unreachable: int | None
    leftovers: int
    names: int
    catalogue: int
    running: int
    trouble: str = ""

    def lines(self, size: Callable[[int], str]) -> list[str]:
        """Return the totals for people, given how bytes are written."""
        free = "not known" if self.unreachable is None else f"{size(self.unreachable)} (impart gc --grace 0s)"
        told = [
            f"stored             {size(self.bytes)} in {self.objects} objects ({self.artifacts} artifacts)",
            f"if each had its own  {size(self.undeduplicated)}",
            f"dense fine-tunes   {size(self.dense)}" if self.dense else "dense fine-tunes   none",
            f"gc frees           {free}",
            f"besides artifacts  {size(self.names)} names, {size(self.catalogue)} catalogue, "
            f"{size(self.running)} running flows, {size(self.leftovers)} leftovers",
        ]
        owners = "Owners are those of zoo files, as the last run of each zoo recorded them."
        return [*told, *([owners] if self.by == "owner" else []), *([self.trouble] if self.trouble else [])]


@dataclass(frozen=True)
class _Dense:
    """A delta's models: ids of base and fine-tuned checkpoint, its bytes, and where both lay by role."""

    base: str
    finetuned: str
    bytes: int
    places: Mapping[str, str]


@dataclass(frozen=True)
class _Held:
    """What a store holds: entries, bytes and parts by id (see `_wholes`), deltas' models, and what could go."""

    entries: Mapping[str, CatalogEntry]
    sizes: Mapping[str, int]
    wholes: Mapping[str, list[str]]
    dense: Mapping[str, _Dense]
    free: Collection[str]


def usage_of(store: Store, by: str = "kind") -> StoreUsage:
    """Return what a store holds.

    Args:
        store: the store.
        by: what it is grouped by: `kind`, `model` (the fine-tuned checkpoint), `base` or `owner`.

    Raises:
        ArtifactNotFoundError: nothing lies at the store's place.
        UnknownNameError: there is no such grouping.
    """
    if by not in GROUPINGS:
        raise unknown_name("grouping", by, GROUPINGS)
    found = survey(store)
    sides = {folder: [info.size for info in store.objects.find(folder).values()] for folder in SIDE_FOLDERS}
    sizes = {name: sum(info.size for info in held.values()) for name, held in found.objects.items()}
    entries = {name: entry for name, entry in found.entries.items() if name in sizes}
    leftovers = sum(size for name, size in sizes.items() if name not in entries)
    garbage = found.garbage
    held = _Held(entries, sizes, _wholes(entries), _dense_of(store, entries), garbage.objects if garbage else ())
    groups = _groups_of(store, by, held)
    beside = sum(info.size for info in garbage.leftovers.values()) if garbage else 0
    return StoreUsage(
        store=store.url,
        by=by,
        groups=_summed(by, held, groups, _labels(store, by, held.dense)),
        bytes=sum(sizes.values()) + sum(map(sum, sides.values())),
        objects=sum(map(len, found.objects.values())) + sum(map(len, sides.values())),
        artifacts=len(entries),
        artifact_bytes=sum(sizes[name] for name in entries),
        shared=sum(sizes[name] for name in entries if len(groups[name]) > 1),
        undeduplicated=sum(sizes[part] for parts in held.wholes.values() for part in parts),
        dense=sum({one.finetuned: one.bytes for one in held.dense.values()}.values()),
        unreachable=sum(sizes[name] for name in held.free) + beside if garbage else None,
        leftovers=leftovers,
        names=sum(sides["refs"]),
        catalogue=sum(sides["catalog"]),
        running=sum(sum(found) for folder, found in sides.items() if folder not in ("refs", "catalog")),
        trouble=found.trouble,
    )


def _is_part(entry: CatalogEntry) -> bool:
    """Return whether an artifact is one that nobody looks for by itself: a block, a decomposition, a trial."""
    kind = kind_of(entry.kind)
    return kind is not None and not kind.listed


def _wholes(entries: Mapping[str, CatalogEntry]) -> dict[str, list[str]]:
    """Return every artifact that stands by itself with all that it consists of, itself first.

    What is a part by its kind but belongs to nothing that is there stands by itself.
    """

    def parts(name: str) -> Iterable[str]:
        return (one for one in entries[name].parents if one in entries and _is_part(entries[one]))

    wholes = {name: reach([name], parts) for name, entry in entries.items() if not _is_part(entry)}
    used = {part for found in wholes.values() for part in found}
    return {**wholes, **{name: [name] for name in entries if name not in used}}


def _dense_of(store: Store, entries: Mapping[str, CatalogEntry]) -> dict[str, _Dense]:
    """Return what each delta stands for, by the delta's id."""
    found = {}
    for name, manifest in store.manifests(name for name, entry in entries.items() if entry.kind == "delta"):
        if manifest is not None and isinstance(content := manifest.content, DeltaContent):
            places = {role: without_secrets(place) for role, place in manifest.provenance.sources.items()}
            found[name] = _Dense(content.base, content.finetuned, content.finetuned_bytes, places)
    return found


def _groups_of(store: Store, by: str, held: _Held) -> dict[str, set[str]]:
    """Return the keys of the groups that each artifact is in: its own, else those of what it was made from."""
    if by == "kind":
        return {name: {entry.kind} for name, entry in held.entries.items()}
    own = owners_of(store) if by == "owner" else _checkpoints(by, held)
    groups: dict[str, set[str]] = defaultdict(set)

    def above(name: str) -> Iterable[str]:
        return () if own.get(name) or name not in held.entries else held.entries[name].parents

    for name, parts in held.wholes.items():
        keys = {key for one in reach([name], above) for key in own.get(one, ())} or {NOBODY}
        for part in parts:
            groups[part] |= keys
    return groups


def _checkpoints(by: str, held: _Held) -> dict[str, set[str]]:
    """Return the models, or the bases, of the artifacts that name a checkpoint."""
    dense, bases = held.dense, {one.finetuned: one.base for one in held.dense.values()}
    found: dict[str, set[str]] = {}
    for name, entry in held.entries.items():
        if name in dense:
            found[name] = {dense[name].finetuned if by == "model" else dense[name].base}
        elif checkpoint := entry.checkpoints.get("checkpoint"):
            found[name] = {checkpoint if by == "model" else bases.get(checkpoint, checkpoint)}
        elif merged := entry.checkpoints.get("merged"):
            found[name] = {merged if by == "model" else bases.get(merged, entry.checkpoints.get("base", NOBODY))}
    return found


def _summed(by: str, held: _Held, groups: Mapping[str, set[str]], labels: Mapping[str, str]) -> tuple[Group, ...]:
    """Return the groups, given the keys of each artifact."""
    count: dict[str, Counter[str]] = defaultdict(Counter)
    models: dict[str, dict[str, int]] = defaultdict(dict)
    for name in held.entries:
        size = held.sizes[name]
        for key in groups[name]:
            count[key]["artifacts"] += 1
            count[key]["shared" if len(groups[name]) > 1 else "alone"] += size
            count[key]["unreachable"] += size if name in held.free else 0
            if name in held.dense:
                models[key][held.dense[name].finetuned] = held.dense[name].bytes
    for name, parts in held.wholes.items():
        for part in parts:
            for key in groups[part if by == "kind" else name]:
                count[key]["undeduplicated"] += held.sizes[part]
    made = [
        Group(key=key, label=labels.get(key, key), dense=sum(models[key].values()), **counted)
        for key, counted in count.items()
    ]
    return tuple(sorted(made, key=lambda one: (-one.alone - one.shared, one.key)))


def _labels(store: Store, by: str, dense: Mapping[str, _Dense]) -> dict[str, str]:
    """Return what checkpoints are called: by the names of their deltas, else by where they lay."""
    if by not in ("model", "base"):
        return {}
    names, labels = names_by_id(store), dict[str, str]()
    for delta, one in sorted(dense.items()):
        key, role = (one.finetuned, "finetuned") if by == "model" else (one.base, "base")
        called = sorted({name.partition("@")[0] for name in names.get(delta, ())}) if by == "model" else []
        if called or key not in labels:
            told = ", ".join(called) or one.places.get(role, "")
            labels[key] = f"{told} {key[:12]}".strip()
    return labels
