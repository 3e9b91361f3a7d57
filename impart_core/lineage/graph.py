"""Lineage: what an artifact was made from and what was made from it, read from the store alone (docs/store.md).

Manifests are hostile input: they may point to what is gone, to themselves, or to each other in a circle.
"""

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from impart_core.base.errors import ArtifactNotFoundError, CorruptArtifactError
from impart_core.base.settings import Frozen
from impart_core.base.text import without_secrets
from impart_core.store.catalog import CatalogEntry, reach, scan
from impart_core.store.manifest import kind_of
from impart_core.store.names import names_by_id
from impart_core.store.store import Store

CHECKPOINT, MISSING = "checkpoint", "missing"


class Node(Frozen):
    """An artifact, a checkpoint, or all blocks or factors of one delta.

    Attributes:
        id: its id; of collapsed parts `<delta's id>:<kind>`.
        kind: that of its catalogue entry, `checkpoint`, or `missing` where the store does not hold it.
        summary: what it is, for people.
        names: the names that point to it.
        bytes: its bytes in the store, as in the catalogue.
        started: when its making began.
        count: how many artifacts it stands for.
        of: of collapsed parts, the id of their delta.
        roles: of a checkpoint, what it was to its children in this lineage: `base`, `finetuned` or `measured`.
        location: of a checkpoint, where it lay when its newest child was made, if that is recorded.
        by: who made it, where that is recorded: a user or a CI job.
    """

    id: str
    kind: str
    summary: str = ""
    names: tuple[str, ...] = ()
    bytes: int = 0
    started: str = ""
    count: int = 1
    of: str = ""
    roles: tuple[str, ...] = ()
    location: str = ""
    by: str = ""


class Lineage(Frozen):
    """The ancestors and descendants of one node, and itself; edges go from parent to child.

    Attributes:
        focus: id of the node that it is about.
        nodes: the focus, its ancestors, nearest first, then its descendants, nearest first.
        edges: (parent, child) by id.
    """

    focus: str
    nodes: tuple[Node, ...]
    edges: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Graph:
    """All nodes by id, the ids of each one's parents and children, and each checkpoint's children with its roles."""

    nodes: Mapping[str, Node]
    parents: Mapping[str, tuple[str, ...]]
    children: Mapping[str, tuple[str, ...]]
    roles: Mapping[str, Sequence[tuple[str, str]]]

    def node(self, known: str, inside: Container[str]) -> Node:
        """Return a node as it is seen among some of the others: a checkpoint's roles are those that it has there."""
        roles = {role for child, role in self.roles.get(known, ()) if child in inside}
        return self.nodes[known].model_copy(update={"roles": tuple(sorted(roles))})


def lineage_of(store: Store, artifact_id: str, *, parts: bool = False) -> Lineage:
    """Return what an artifact was made from and what was made from it.

    Args:
        store: the store.
        artifact_id: whose lineage.
        parts: whether blocks and factors are nodes of their own, instead of one a kind for each delta.

    Raises:
        ArtifactNotFoundError: the store does not hold it.
    """
    entries, names = scan(store), names_by_id(store)
    if artifact_id not in entries:
        raise ArtifactNotFoundError(f"There is no artifact {artifact_id[:12]} in the store {store.url}.")
    found = around(build_graph(entries.values(), names), artifact_id, parts=parts)
    made = defaultdict(list)
    for parent, child in found.edges:
        if child in entries:
            made[parent].append(entries[child])
    looked_for = [one.id for one in found.nodes if (kind := kind_of(one.kind)) and kind.listed]
    makers = {name: manifest.provenance.user for name, manifest in store.manifests(looked_for) if manifest}
    nodes = tuple(
        node.model_copy(update={"location": _location(store, made[node.id], node.id)})
        if node.kind == CHECKPOINT
        else node.model_copy(update={"by": makers.get(node.id, "")})
        for node in found.nodes
    )
    return found.model_copy(update={"nodes": nodes})


def build_graph(entries: Iterable[CatalogEntry], names: Mapping[str, Iterable[str]]) -> Graph:
    """Return the graph of catalogue entries, given the names that point to each id."""
    entries = list(entries)
    nodes = {
        entry.id: Node(
            **entry.model_dump(include={"id", "kind", "summary", "bytes", "started"}),
            names=tuple(sorted(names.get(entry.id, ()))),
        )
        for entry in entries
    }
    parents: dict[str, tuple[str, ...]] = {}
    children, roles = defaultdict(list), defaultdict(list)
    for entry in sorted(entries, key=lambda entry: (entry.started, entry.id)):
        kind = kind_of(entry.kind)
        for role, checkpoint in entry.checkpoints.items():
            roles[checkpoint].append((entry.id, "measured" if role == CHECKPOINT else role))
            if kind and role == kind.gives:
                parents[checkpoint] = (*parents.get(checkpoint, ()), entry.id)
                children[entry.id].append(checkpoint)
        used = [one for role, one in entry.checkpoints.items() if not kind or role != kind.gives]
        parents[entry.id] = tuple(dict.fromkeys([*used, *entry.parents]))
        for parent in parents[entry.id]:
            children[parent].append(entry.id)
    for known in roles:
        nodes.setdefault(known, Node(id=known, kind=CHECKPOINT))
    for known in children:
        nodes.setdefault(known, Node(id=known, kind=MISSING))
    return Graph(nodes, parents, {parent: tuple(made) for parent, made in children.items()}, roles)


def around(graph: Graph, focus: str, *, parts: bool = False) -> Lineage:
    """Return the part of a graph that leads to a node or comes from it; blocks and factors collapsed unless `parts`.

    The lineage of a block, or of factors, is always shown part by part.
    """
    above = reach([focus], lambda node: graph.parents.get(node, ()))
    below = reach([focus], lambda node: graph.children.get(node, ()))
    order = list(dict.fromkeys([*above, *below]))
    inside = set(order)
    edges = [(parent, child) for child in order for parent in graph.parents.get(child, ()) if parent in inside]
    if not parts and not _part_of(graph.nodes[focus]):
        return _collapse(graph, focus, order, edges)
    return Lineage(focus=focus, nodes=tuple(graph.node(node, inside) for node in order), edges=tuple(edges))


def _collapse(graph: Graph, focus: str, order: list[str], edges: list[tuple[str, str]]) -> Lineage:
    """Put one node a kind for each delta in the place of its blocks, and of the factors that these were made from.

    A part that several deltas share counts for each of them; one that belongs to none stays as it is.
    """
    groups = _groups(graph, order)
    stand_ins: dict[str, dict[str, str]] = defaultdict(dict)  # part → delta → the node that stands for it there
    for (delta, kind), members in groups.items():
        for member in members:
            stand_ins[member][delta] = f"{delta}:{kind}"

    def between(parent: str, child: str) -> Iterable[tuple[str, str]]:
        ours, theirs = stand_ins.get(parent), stand_ins.get(child)
        if ours is not None and theirs is not None:
            return [(ours[delta], theirs[delta]) for delta in ours if delta in theirs and ours[delta] != theirs[delta]]
        if ours is not None:
            return [(ours[child], child)] if child in ours else [(one, child) for one in ours.values()]
        return [(parent, one) for one in theirs.values()] if theirs is not None else [(parent, child)]

    drawn = dict.fromkeys(edge for parent, child in edges for edge in between(parent, child))
    nodes: dict[str, Node] = {}
    for node in order:
        if node not in stand_ins:
            nodes[node] = graph.node(node, order)
        for delta, stand_in in stand_ins.get(node, {}).items():
            kind = graph.nodes[node].kind
            if stand_in not in nodes:
                parts = [graph.nodes[member] for member in groups[delta, kind]]
                nodes[stand_in] = _stand_in(stand_in, delta, kind, parts)
    return Lineage(focus=focus, nodes=tuple(nodes.values()), edges=tuple(drawn))


def _groups(graph: Graph, order: list[str]) -> dict[tuple[str, str], dict[str, None]]:
    """Return the parts of each delta by (delta's id, kind), those alone that are in `order`."""
    inside = set(order)
    groups: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for delta in order:
        whole = graph.nodes[delta].kind
        direct = [part for part in graph.parents.get(delta, ()) if _is_part(graph, part, whole, inside)]
        beneath = [below for part in direct for below in graph.parents.get(part, ())]
        for part in (*direct, *(below for below in beneath if _is_part(graph, below, whole, inside))):
            groups[delta, graph.nodes[part].kind][part] = None
    return groups


def _is_part(graph: Graph, node: str, whole: str, inside: set[str]) -> bool:
    return node in inside and _part_of(graph.nodes[node]) == whole


def _part_of(node: Node) -> str | None:
    """Return the kind that a node's kind belongs to, if it belongs to any."""
    kind = kind_of(node.kind)
    return kind.part_of if kind else None


def _stand_in(stand_in: str, delta: str, kind: str, members: list[Node]) -> Node:
    content = kind_of(kind)
    return Node(
        id=stand_in,
        of=delta,
        kind=kind,
        summary=f"{len(members)} {content.plural if content and len(members) > 1 else kind}",
        bytes=sum(member.bytes for member in members),
        started=min(member.started for member in members),
        count=len(members),
    )


def _location(store: Store, children: Iterable[CatalogEntry], checkpoint: str) -> str:
    """Return where a checkpoint lay, from the newest manifest among its children's that says so."""
    for entry in sorted(children, key=lambda entry: entry.started, reverse=True):
        try:
            sources = store.manifest(entry.id).provenance.sources
        except (ArtifactNotFoundError, CorruptArtifactError):
            continue
        for role, known in entry.checkpoints.items():
            if known == checkpoint and role in sources:
                return without_secrets(sources[role])
    return ""
