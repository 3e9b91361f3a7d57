"""Mermaid and Graphviz: each line one statement, hostile text inside its quotes."""

import re

from hypothesis import given
from hypothesis import strategies as st

from impart_core.lineage.draw.markup import to_dot, to_mermaid
from impart_core.lineage.graph import around, build_graph
from impart_core.store.catalog import CatalogEntry
from tests.impart_core.lineage.graphs import catalogues, deltas, number

MERMAID = [
    r'n\d+\["(?:[^"<`]|<br/>)*"\]',
    r"style n\d+ fill:#[0-9a-f]{6},stroke:#444,color:#000(?:,stroke-width:3px)?",
    r"n\d+ --> n\d+",
]
QUOTED = r'"(?:[^"\\]|\\.)*"'
DOT = [
    r"rankdir=LR;",
    rf"node \[shape=box, style={QUOTED}, fontname={QUOTED}, fontsize=11\];",
    rf"n\d+ \[label={QUOTED}, fillcolor={QUOTED}(?:, penwidth=3)?\];",
    r"n\d+ -> n\d+;",
]


@given(catalogues(), st.text(max_size=20), st.booleans())
def test_every_line_is_a_statement_whatever_manifests_hold(entries: list[CatalogEntry], name: str, parts: bool) -> None:
    lineage = around(build_graph(entries, {entries[0].id: [name]}), entries[0].id, parts=parts)
    first, *lines = to_mermaid(lineage).removesuffix("\n").split("\n")
    assert first == "flowchart LR"
    assert all(any(re.fullmatch("  " + form, line) for form in MERMAID) for line in lines)
    assert len(lines) == 2 * len(lineage.nodes) + len(lineage.edges)
    first, *lines, last = to_dot(lineage).removesuffix("\n").split("\n")
    assert (first, last) == ("digraph lineage {", "}")
    assert all(any(re.fullmatch("  " + form, line) for form in DOT) for line in lines)
    assert len(lines) == 2 + len(lineage.nodes) + len(lineage.edges)


def test_edges_join_the_nodes_that_they_join() -> None:
    lineage = around(build_graph(deltas(), {}), number(1))
    keys = {f"n{place}": node.id for place, node in enumerate(lineage.nodes)}
    for text, arrow in ((to_mermaid(lineage), "-->"), (to_dot(lineage), "->")):
        drawn = [(keys[a], keys[b]) for a, b in re.findall(rf"^  (n\d+) {arrow} (n\d+);?$", text, re.MULTILINE)]
        assert drawn == list(lineage.edges)


def test_a_label_says_name_settings_id_and_bytes() -> None:
    lineage = around(build_graph(deltas(), {number(1): ['a"\\N']}), number(1))
    assert r'"delta a\"\\N\nimpart at CR 1\n000000000000 500 B"' in to_dot(lineage)
    assert '"delta a#34;#92;N<br/>impart at CR 1<br/>000000000000 500 B"' in to_mermaid(lineage)
