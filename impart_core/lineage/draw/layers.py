"""Where the nodes of a layered drawing stand: every edge leads to a later layer, and few of them cross.

Longest-path layers and barycentre sweeps, after Sugiyama et al. 1981, without recursion.
"""

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from itertools import pairwise

Edge = tuple[str, str]
Bend = tuple[int, int]  # where an edge, by number, passes through a layer that neither of its ends is in
Item = str | Bend
_SWEEPS = 4
_MOST_BENDS = 5000  # with more, long edges pass beneath what lies between: nobody would follow them anyhow


def layers_of(nodes: Sequence[str], edges: Sequence[Edge]) -> list[list[Item]]:
    """Return the layers, each with its nodes and bends in their order.

    Args:
        nodes: all nodes.
        edges: between them, (from, to); those that close a circle lead backwards and have no bends.
    """
    rank = ranks(nodes, edges)
    layers: list[list[Item]] = [[] for _ in range(max(rank.values(), default=-1) + 1)]
    for node in nodes:
        layers[rank[node]].append(node)
    near: list[tuple[Item, Item]] = []
    bends = 0
    for number, (start, end) in enumerate(edges):
        way: list[Item] = [start]
        passed = range(rank[start] + 1, rank[end])
        if bends + len(passed) <= _MOST_BENDS:
            bends += len(passed)
            for layer in passed:
                layers[layer].append((number, layer))
                way.append((number, layer))
        way.append(end)
        near += pairwise(way)
    return _sweep(layers, near)


def ranks(nodes: Sequence[str], edges: Sequence[Edge]) -> dict[str, int]:
    """Return each node's layer: after all nodes that lead to it, and right before the first that it leads to."""
    following = defaultdict(list)
    waits_for = dict.fromkeys(nodes, 0)
    for start, end in edges:
        if start != end:
            following[start].append(end)
            waits_for[end] += 1
    rank = dict.fromkeys(nodes, 0)
    placed: dict[str, None] = {}
    ready = deque(node for node in nodes if not waits_for[node])
    for candidate in nodes:  # taken in turn where nothing is ready, as all that is left is behind a circle
        if not ready and candidate not in placed:
            ready.append(candidate)
        while ready:
            node = ready.popleft()
            if node in placed:
                continue
            placed[node] = None
            for end in following[node]:
                if end not in placed:
                    rank[end] = max(rank[end], rank[node] + 1)
                    waits_for[end] -= 1
                    if not waits_for[end]:
                        ready.append(end)
    for node in reversed(placed):
        later = [rank[end] for end in following[node] if rank[end] > rank[node]]
        if later:
            rank[node] = min(later) - 1
    return rank


def _sweep(layers: list[list[Item]], near: Sequence[tuple[Item, Item]]) -> list[list[Item]]:
    """Order each layer by the mean place of its neighbours in the layer before, then after, a few times over."""
    before, after = defaultdict(list), defaultdict(list)
    for start, end in near:
        before[end].append(start)
        after[start].append(end)
    place = {item: float(number) for layer in layers for number, item in enumerate(layer)}
    for sweep in range(_SWEEPS):
        forth = sweep % 2 == 0
        for layer in layers if forth else reversed(layers):
            _order(layer, before if forth else after, place)
    return layers


def _order(layer: list[Item], near: Mapping[Item, Sequence[Item]], place: dict[Item, float]) -> None:
    wish = {item: sum(map(place.__getitem__, near[item])) / len(near[item]) for item in layer if near.get(item)}
    layer.sort(key=lambda item: wish.get(item, place[item]))
    for number, item in enumerate(layer):
        place[item] = float(number)
