"""Lineage: everything that leads to an artifact or comes from it, and nothing else, whatever manifests claim."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from impart_core.base.errors import ArtifactNotFoundError
from impart_core.lineage.graph import Lineage, around, build_graph, lineage_of
from impart_core.store.catalog import CatalogEntry, reach
from impart_core.store.names import set_ref
from impart_core.store.store import Store
from tests.impart_core.lineage.graphs import BASE, TUNED, catalogues, deltas, number
from tests.impart_core.pipeline import compress, config_of, flip
from tests.impart_core.store.samples import sample
from tests.support import calls_of

Pair = tuple[Path, Path]


def lineage(entries: list[CatalogEntry], focus: str, *, parts: bool = False) -> Lineage:
    return around(build_graph(entries, {}), focus, parts=parts)


def ids(found: Lineage) -> set[str]:
    return {node.id for node in found.nodes}


def test_a_delta_comes_from_two_checkpoints_its_blocks_and_their_factors() -> None:
    found = lineage(deltas(), number(1), parts=True)
    parts = {number(n) for n in (100, 101, 102, 9000, 9001, 9002)}
    assert ids(found) == {number(1), BASE, TUNED, *parts}
    assert (number(9001), number(101)) in found.edges
    assert (number(101), number(1)) in found.edges
    assert {node.id: node.roles for node in found.nodes if node.kind == "checkpoint"} == {
        BASE: ("base",),
        TUNED: ("finetuned",),
    }


def test_blocks_and_factors_are_one_node_a_kind_with_their_number_and_bytes() -> None:
    found = lineage(deltas(), number(1))
    blocks, factors = f"{number(1)}:block", f"{number(1)}:factors"
    assert ids(found) == {number(1), BASE, TUNED, blocks, factors}
    assert set(found.edges) == {
        *((one, number(1)) for one in (BASE, TUNED, blocks)),
        (factors, blocks),
    }
    by_id = {node.id: node for node in found.nodes}
    assert (by_id[blocks].summary, by_id[blocks].bytes, by_id[blocks].count) == ("3 blocks", 30, 3)
    assert (by_id[factors].summary, by_id[factors].bytes, by_id[factors].of) == ("3 factors", 150, number(1))


def test_the_lineage_of_factors_leads_through_each_block_to_the_deltas_that_use_them() -> None:
    found = lineage(deltas(), number(9001))
    assert ids(found) == {number(n) for n in (9001, 101, 201, 1, 2)}


def test_parts_of_a_delta_before_another_are_collapsed_for_each_of_them() -> None:
    first, *_ = (entry for entry in deltas(1) if entry.kind == "delta")
    shared = [entry for entry in deltas(1) if entry.kind != "delta"]
    second = first.model_copy(update={"id": number(2), "parents": (*first.parents, first.id)})
    found = lineage([*shared, first, second], second.id)
    edges = {(a[-9:], b[-9:]) for a, b in found.edges if ":" in a}
    assert edges == {
        (f"{n}:{kind}"[-9:], to[-9:])
        for n in (number(1), number(2))
        for kind, to in (("block", n), ("factors", f"{n}:block"))
    }


def test_what_was_made_from_a_delta_is_below_it_and_its_siblings_are_not() -> None:
    evaluation = CatalogEntry(id=number(50), kind="evaluation", parents=(number(1),))
    found = lineage([*deltas(), evaluation], number(1))
    assert number(50) in ids(found)
    assert number(2) not in ids(found)
    assert (number(1), number(50)) in found.edges


def test_a_checkpoint_is_called_what_it_is_in_this_lineage() -> None:
    evaluation = CatalogEntry(id=number(50), kind="evaluation", checkpoints={"checkpoint": TUNED})
    (node,) = (node for node in lineage([*deltas(), evaluation], number(50)).nodes if node.id == TUNED)
    assert node.roles == ("measured",)
    other = CatalogEntry(id=number(60), kind="delta", checkpoints={"base": TUNED, "finetuned": number(61)})
    roles = {node.id: node.roles for node in lineage([*deltas(), other], number(1)).nodes if node.kind == "checkpoint"}
    assert roles == {BASE: ("base",), TUNED: ("finetuned",)}
    assert lineage([*deltas(), other], TUNED).nodes[0].roles == ("base", "finetuned")


def test_a_missing_parent_is_shown_as_missing() -> None:
    entries = [entry for entry in deltas(1) if entry.id not in (number(101), number(9002))]
    found = lineage(entries, number(1))
    missing = {node.id for node in found.nodes if node.kind == "missing"}
    assert missing == {number(101), number(9002)}
    assert {(number(101), number(1)), (number(9002), f"{number(1)}:block")} <= set(found.edges)


@given(catalogues(), st.booleans())
def test_any_catalogue_has_a_lineage_whose_edges_have_both_ends(entries: list[CatalogEntry], parts: bool) -> None:
    for entry in entries:
        found = lineage(entries, entry.id, parts=parts)
        known = [node.id for node in found.nodes]
        assert len(known) == len(set(known))
        assert entry.id in known
        assert {end for edge in found.edges for end in edge} <= set(known)
        assert len(found.edges) == len(set(found.edges))


@given(catalogues())
def test_with_parts_it_holds_exactly_what_is_reached_by_parents_or_by_children(entries: list[CatalogEntry]) -> None:
    steps = {(parent, entry.id) for entry in entries for parent in (*entry.parents, *entry.checkpoints.values())}
    focus = entries[0].id
    assert ids(lineage(entries, focus, parts=True)) == closure(focus, steps) | closure(
        focus, {(child, parent) for parent, child in steps}
    )


def closure(start: str, steps: set[tuple[str, str]]) -> set[str]:
    """Return what is reached from a node, by adding to a set until nothing is left to add."""
    found: set[str] = set()
    grown = {start}
    while grown != found:
        found = grown
        grown = found | {end for begin, end in steps if begin in found}
    return found


def test_reach_gives_the_nearest_first() -> None:
    steps = {"a": ["b", "c"], "b": ["d"], "c": ["d"], "d": ["a", "e"]}
    assert reach(["a"], lambda node: steps.get(node, [])) == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("parts", [False, True])
def test_the_work_grows_as_the_number_of_artifacts_does(parts: bool) -> None:
    def chain_of(count: int) -> int:
        chain = [
            CatalogEntry(id=number(n), kind="delta", parents=(number(n - 1),) if n else (), checkpoints={"base": BASE})
            for n in range(count)
        ]
        return calls_of(lambda: lineage(chain, number(count // 2), parts=parts))

    def wide_of(count: int) -> int:
        wide = [
            CatalogEntry(id=number(1), kind="delta", parents=tuple(number(n) for n in range(10, count))),
            *(CatalogEntry(id=number(n), kind="block") for n in range(10, count)),
        ]
        assert len(lineage(wide, number(1), parts=parts).nodes) == (count - 9 if parts else 2)
        return calls_of(lambda: lineage(wide, number(1), parts=parts))

    for cost in (chain_of, wide_of):
        cost(20)  # what is done once for each process
        assert cost(2000) < 5 * cost(500)


@pytest.fixture
def store(pair: Pair, tmp_path: Path) -> Store:
    return compress(Store(tmp_path / "store"), *pair, config_of(4), keep_factors=True).store


def test_a_stores_lineage_has_names_and_reads_no_weights(store: Store) -> None:
    delta = next(made for made in store.ids() if store.manifest(made).content.kind == "delta")
    set_ref(store, "math@prod", delta)
    for file in Path(store.url).rglob("*.safetensors"):
        file.unlink()
    found = lineage_of(store, delta)
    assert [node.names for node in found.nodes if node.id == delta] == [("math@prod",)]
    assert {node.kind: node.count for node in found.nodes if node.of} == {"block": 3, "factors": 2}


def test_a_damaged_block_is_shown_as_damaged_and_hides_nothing_else(store: Store) -> None:
    delta = next(made for made in store.ids() if store.manifest(made).content.kind == "delta")
    block = store.manifest(delta).parents[0]
    flip(Path(store.url) / "artifacts" / block / "manifest.json", 50)
    kinds = {node.id: node.kind for node in lineage_of(store, delta).nodes}
    assert kinds[block] == "damaged"
    assert kinds[f"{delta}:block"] == "block"


def test_an_artifact_that_the_store_does_not_hold_has_no_lineage(store: Store) -> None:
    with pytest.raises(ArtifactNotFoundError, match="no artifact 000000000000"):
        lineage_of(store, number(1))


def test_checkpoints_are_shown_where_the_newest_manifest_says_that_they_lay(store: Store, tmp_path: Path) -> None:
    delta = next(made for made in store.ids() if store.manifest(made).content.kind == "delta")
    path = Path(store.url) / "artifacts" / delta / "manifest.json"
    old = store.manifest(delta)
    moved = old.provenance.model_copy(update={"sources": {"base": "/models/base", "finetuned": "hf://org/name@1"}})
    fields = {name: getattr(old, name) for name in ("parents", "files", "content")}
    path.write_bytes(type(old).make(old.recipe, provenance=moved, **fields).to_json())
    shown = {node.roles: node.location for node in lineage_of(store, delta).nodes if node.kind == "checkpoint"}
    assert shown == {("base",): "/models/base", ("finetuned",): "hf://org/name@1"}


def test_a_lineage_is_json(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    made = store.publish(*sample(tmp_path / "scratch"))
    found = lineage_of(store, made.id)
    assert Lineage.model_validate_json(json.dumps(found.model_dump(mode="json"))) == found
