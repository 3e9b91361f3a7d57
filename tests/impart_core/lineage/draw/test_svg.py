"""The picture: well-formed whatever manifests hold, every node and edge in it, no two boxes on one place."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from impart_core.lineage.draw.svg import to_svg
from impart_core.lineage.graph import around, build_graph
from impart_core.store.catalog import CatalogEntry
from tests.impart_core.lineage.graphs import catalogues, deltas, number
from tests.support import calls_of

SVG = "{http://www.w3.org/2000/svg}"


def boxes(root: ElementTree.Element) -> list[tuple[float, float, float, float]]:
    """Return each box's left, top, right and bottom."""
    found = []
    for box in root.findall(f"{SVG}svg"):
        x, y, width, height = (float(box.attrib[name]) for name in ("x", "y", "width", "height"))
        found.append((x, y, x + width, y + height))
    return found


@given(catalogues(), st.booleans(), st.text(max_size=20))
def test_any_lineage_is_a_well_formed_picture_of_all_its_nodes_and_edges(
    entries: list[CatalogEntry], parts: bool, name: str
) -> None:
    lineage = around(build_graph(entries, {entries[0].id: [name]}), entries[0].id, parts=parts)
    root = ElementTree.fromstring(to_svg(lineage))
    found = boxes(root)
    assert len(found) == len(lineage.nodes)
    assert len(root.findall(f"{SVG}g/{SVG}path")) == len(lineage.edges)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for number_, (left, top, right, bottom) in enumerate(found):
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        for other in found[:number_]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top


@pytest.mark.parametrize(
    "hostile",
    ["</text></svg><script>alert(1)</script>", '" onload="alert(1)', "]]>", "&xxe;", "\x00\x1b[2J", "\u202e", "a\nb"],
)
def test_hostile_text_stays_text(hostile: str) -> None:
    entry = CatalogEntry(id=number(1), kind="delta", summary=hostile)
    root = ElementTree.fromstring(to_svg(around(build_graph([entry], {entry.id: [hostile]}), entry.id)))
    tags = {element.tag.removeprefix(SVG) for element in root.iter()}
    assert tags == {"svg", "title", "defs", "marker", "path", "rect", "g", "text"}
    assert not [name for element in root.iter() for name in element.attrib if name.startswith("on")]
    assert all(text.isprintable() for text in root.itertext() if text.strip("\n"))


def test_it_needs_nothing_from_elsewhere() -> None:
    drawn = to_svg(around(build_graph(deltas(), {}), number(1)))
    assert re.findall(r"https?://[^\"]*", drawn) == ["http://www.w3.org/2000/svg"]
    assert "href" not in drawn


def test_parents_stand_to_the_left_of_their_children() -> None:
    lineage = around(build_graph(deltas(), {}), number(1), parts=True)
    left = dict(zip((node.id for node in lineage.nodes), boxes(ElementTree.fromstring(to_svg(lineage))), strict=True))
    assert all(left[parent][2] < left[child][0] for parent, child in lineage.edges)


def test_a_long_line_keeps_both_its_ends_and_its_whole_as_a_tooltip() -> None:
    long = "/models/" + "folder/" * 20 + "the-end"
    entry = CatalogEntry(id=number(1), kind="delta", summary=long)
    root = ElementTree.fromstring(to_svg(around(build_graph([entry], {}), entry.id)))
    (shown,) = (text.text for text in root.iter(f"{SVG}text") if "…" in (text.text or ""))
    assert shown and shown.startswith("/models/") and shown.endswith("the-end") and len(shown) <= 34
    assert any(long in (title.text or "") for title in root.iter(f"{SVG}title"))


def test_the_work_of_a_drawing_grows_as_the_number_of_artifacts_does() -> None:
    def cost(count: int) -> int:
        chain = [
            CatalogEntry(id=number(n), kind="delta", parents=(number(n - 1), number(n // 2)) if n else ())
            for n in range(count)
        ]
        lineage = around(build_graph(chain, {}), number(count - 1))
        assert to_svg(lineage).count("<svg ") == count + 1
        return calls_of(lambda: to_svg(lineage))

    cost(10)  # what is done once for each process
    assert cost(2000) < 5 * cost(500)
