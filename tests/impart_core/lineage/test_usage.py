"""What a store holds: every byte of it, held against a walk of the place itself and against gc."""

import json
import time
from pathlib import Path

import fsspec
import pytest

from impart_core.artifacts.zoo_run import publish_zoo_run
from impart_core.base.errors import UnknownNameError
from impart_core.lineage.usage import GROUPINGS, NOBODY, usage_of
from impart_core.store.gc import collect
from impart_core.store.manifest import Manifest
from impart_core.store.names import set_ref
from impart_core.store.provenance import Stopwatch
from impart_core.store.store import Store
from impart_core.zoo.record import Attempt, Outcome, ZooRun
from tests.impart_core.pipeline import compress, config_of
from tests.impart_core.store.samples import NO_GRACE, evaluation_of, small_delta

Walk = dict[str, int]


def walk(store: Store) -> Walk:
    """Return the bytes of every object at the store's place by its path, whatever the store thinks of it."""
    fs, root = fsspec.core.url_to_fs(store.url)
    fs.invalidate_cache()
    return {
        path.partition(root.strip("/"))[2].strip("/"): info["size"] for path, info in fs.find(root, detail=True).items()
    }


def bytes_of(found: Walk, *ids: str) -> int:
    return sum(size for path, size in found.items() if path.split("/")[1] in ids)


def run_of(artifact: str, owner: str, tried: str) -> ZooRun:
    attempt = Attempt(step="lowrank", artifact=tried, bytes=1, cr_model=2.0, cached=False, passed=True)
    outcome = Outcome(
        name="a", kind="model", status="promoted", ref="a@prod", artifact=artifact, owner=owner, attempts=(attempt,)
    )
    return ZooRun(zoo="z", run="r", started="2026-11-26", seconds=1, store="s", outcomes=(outcome,))


def parts_of(store: Store, delta: Manifest) -> list[str]:
    """Return the ids of a delta, its blocks and their decompositions."""
    return [delta.id, *delta.parents, *(factor for block in delta.parents for factor in store.manifest(block).parents)]


def test_every_byte_is_counted_once_and_groups_add_up(store: Store) -> None:
    named, other = small_delta(store, 0, blocks=3), small_delta(store, 1)
    measured = evaluation_of(store, {"delta": named.id}, (named.id,))
    set_ref(store, "a@prod", named.id)
    publish_zoo_run(store, run_of(named.id, "ann", named.id), Stopwatch())
    found = walk(store)
    for by in GROUPINGS:
        usage = usage_of(store, by)
        assert (usage.bytes, usage.objects) == (sum(found.values()), len(found))
        assert usage.artifact_bytes == sum(size for path, size in found.items() if path.startswith("artifacts/"))
        beside = usage.names + usage.catalogue + usage.running + usage.leftovers
        assert usage.artifact_bytes + beside == usage.bytes
        assert sum(group.alone for group in usage.groups) + usage.shared == usage.artifact_bytes
        assert usage.dense == 2  # each sample stands for a checkpoint of one byte
    (ann,) = (group for group in usage_of(store, "owner").groups if group.key == "ann")
    assert ann.alone == bytes_of(found, *parts_of(store, named), measured.id)
    models = {group.key: group for group in usage_of(store, "model").groups}
    assert models[other.content.model_dump()["finetuned"]].alone == bytes_of(found, *parts_of(store, other))
    assert models[named.content.model_dump()["finetuned"]].label.startswith("a ")
    assert {group.key for group in usage_of(store, "base").groups} == {other.content.model_dump()["base"], NOBODY}


def test_what_could_go_is_what_gc_frees_to_the_byte(store: Store) -> None:
    set_ref(store, "kept", small_delta(store, 0).id)
    gone = small_delta(store, 1)
    store.objects.create(f"artifacts/{'e' * 64}/data.bin", b"of a writer that was killed")
    usage = usage_of(store)
    before = sum(walk(store).values())
    if not store.objects.is_local:
        time.sleep(1.1)  # its clock may tell whole seconds
    report = collect(store, NO_GRACE, delete=True)
    assert usage.unreachable == report.bytes
    assert usage.leftovers == len(b"of a writer that was killed")
    left = sum(size for path, size in walk(store).items() if not path.startswith("catalog/"))
    assert before - usage.catalogue - left == report.bytes
    assert usage_of(store).unreachable == 0
    assert store.lookup(gone.id) is None


def test_shared_parts_count_for_every_whole_that_has_them(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    store = Store(tmp_path / "store")
    first = compress(store, *pair, config_of(cr=4), keep_factors=True)
    second = compress(store, *pair, config_of(cr=8), keep_factors=True)
    found = walk(store)
    factors = {factor for block in first.blocks for factor in block.parents}
    assert factors == {factor for block in second.blocks for factor in block.parents}
    usage = usage_of(store)
    own = {one.id for delta in (first, second) for one in (delta.manifest, *delta.blocks)}
    twice = {block.id for block in first.blocks} & {block.id for block in second.blocks}  # coded by no method
    assert usage.undeduplicated == bytes_of(found, *own) + bytes_of(found, *twice) + 2 * bytes_of(found, *factors)
    assert usage.undeduplicated > usage.artifact_bytes
    (kind,) = (group for group in usage.groups if group.key == "factors")
    assert (kind.alone, kind.undeduplicated) == (bytes_of(found, *factors), 2 * bytes_of(found, *factors))
    assert usage.dense == first.content.finetuned_bytes  # one checkpoint, compressed twice
    (model,) = usage_of(store, "model").groups
    assert (model.alone, model.shared, model.undeduplicated) == (usage.artifact_bytes, 0, usage.undeduplicated)


def test_a_name_that_dangles_leaves_all_else_known(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    set_ref(store, "lost", small_delta(store).id)
    for path in list(store.objects.find(f"artifacts/{store.ids()[0]}")):
        store.objects.delete([path])
    set_ref(store, "gone", "a" * 64)
    usage = usage_of(store)
    assert usage.unreachable is None
    assert "'gone' points to" in usage.trouble
    assert usage.bytes == sum(walk(store).values())
    json.dumps(usage.model_dump(mode="json"))


def test_a_grouping_that_does_not_exist_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="owner"):
        usage_of(Store(tmp_path), "owners")
