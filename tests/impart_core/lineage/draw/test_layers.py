"""Layers: edges lead forward, and what can be drawn without a crossing has none."""

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from impart_core.lineage.draw.layers import layers_of, ranks

EDGES = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=25, unique=True)
NODES = [str(n) for n in range(10)]


@given(EDGES)
def test_without_a_circle_every_edge_leads_to_a_later_layer(pairs: list[tuple[int, int]]) -> None:
    edges = [(str(min(pair)), str(max(pair))) for pair in pairs if pair[0] != pair[1]]
    rank = ranks(NODES, edges)
    assert all(rank[start] < rank[end] for start, end in edges)


@given(EDGES)
def test_any_graph_has_each_node_once(pairs: list[tuple[int, int]]) -> None:
    layers = layers_of(NODES, [(str(start), str(end)) for start, end in pairs])
    assert sorted(item for layer in layers for item in layer if isinstance(item, str)) == NODES


def test_a_node_stands_right_before_the_first_that_it_leads_to() -> None:
    edges = [("a", "b"), ("b", "c"), ("late", "c")]
    assert ranks(["a", "b", "c", "late"], edges) == {"a": 0, "b": 1, "late": 1, "c": 2}


def test_a_long_edge_bends_through_every_layer_between() -> None:
    layers = layers_of(["a", "b", "c", "d"], [("a", "b"), ("b", "c"), ("c", "d"), ("a", "d")])
    assert [item for layer in layers for item in layer if isinstance(item, tuple)] == [(3, 1), (3, 2)]


def test_crossed_pairs_are_untangled() -> None:
    nodes = [*"abcd", *"wxyz"]
    edges = list(zip("abcd", "zyxw", strict=True))
    first, second = layers_of(nodes, edges)
    place = {item: number for layer in (first, second) for number, item in enumerate(layer)}
    assert not [1 for (a, b), (c, d) in combinations(edges, 2) if (place[a] - place[c]) * (place[b] - place[d]) < 0]
