"""The tree: everything once, what comes first unfolded, nothing that steers a terminal."""

from hypothesis import given

from impart_core.lineage.draw.tree import to_text
from impart_core.lineage.graph import around, build_graph
from impart_core.store.catalog import CatalogEntry
from tests.impart_core.lineage.graphs import catalogues, deltas, number


def test_it_reads_as_a_tree_of_ancestors_then_descendants() -> None:
    evaluation = CatalogEntry(id="e" * 64, kind="evaluation", summary="math (test)", parents=(number(1),))
    lineage = around(build_graph([*deltas(1), evaluation], {number(1): ["math@prod"]}), number(1))
    assert to_text(lineage) == (
        "delta 000000000000 (math@prod)  impart at CR 1  500 B\n"
        "\n"
        "made from\n"
        "├─ base bbbbbbbbbbbb\n"
        "├─ finetuned ffffffffffff\n"
        "└─ 3 blocks  30 B\n"
        "   └─ 3 factors  150 B\n"
        "\n"
        "led to\n"
        "└─ evaluation eeeeeeeeeeee  math (test)\n"
    )


def test_what_is_reached_twice_is_unfolded_once() -> None:
    entries = [
        CatalogEntry(id=number(1), kind="delta", summary="root", parents=()),
        CatalogEntry(id=number(2), kind="delta", summary="shared", parents=(number(1),)),
        CatalogEntry(id=number(3), kind="delta", summary="left", parents=(number(2),)),
        CatalogEntry(id=number(4), kind="delta", summary="top", parents=(number(2), number(3))),
    ]
    text = to_text(around(build_graph(entries, {}), number(4)))
    assert text.count("root") == 1
    assert text.count("shared") == 2
    assert text.count("(see above)") == 1


@given(catalogues())
def test_any_lineage_is_a_text_of_lines_with_every_node(entries: list[CatalogEntry]) -> None:
    lineage = around(build_graph(entries, {}), entries[0].id, parts=True)
    lines = to_text(lineage).removesuffix("\n").split("\n")
    assert all(line.isprintable() for line in lines)
    assert len([line for line in lines if "─ " in line and "nothing that" not in line]) >= len(lineage.nodes) - 1


def test_a_chain_of_thousands_is_not_mostly_spaces() -> None:
    chain = [CatalogEntry(id=number(n), kind="delta", parents=(number(n - 1),) if n else ()) for n in range(5000)]
    text = to_text(around(build_graph(chain, {}), number(4999)))
    assert text.count("delta") == 5000
    assert max(map(len, text.splitlines())) < 120
