"""Cleaning up: what names, runs and the grace time keep stays, the rest goes, and no half is ever seen."""

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.artifacts.delta import Delta
from impart_core.base.errors import CorruptArtifactError
from impart_core.store import gc, pins
from impart_core.store.catalog import entry_of, note, scan
from impart_core.store.gc import GcReport, collect
from impart_core.store.manifest import Manifest
from impart_core.store.names import set_ref
from impart_core.store.pins import pin, pinned_ids
from impart_core.store.retention import Rules
from impart_core.store.store import Store
from impart_core.store.verify import verify
from tests.impart_core.pipeline import compress, config_of, flip
from tests.impart_core.store.samples import NO_GRACE, sample

Pair = tuple[Path, Path]
NOW = timedelta(0)


@pytest.fixture
def folder_store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def put(store: Store, path: str, data: bytes) -> None:
    """Write one object behind the store's back."""
    fs, root = fsspec.core.url_to_fs(store.url)
    fs.makedirs(f"{root}/{path}".rpartition("/")[0], exist_ok=True)
    fs.pipe_file(f"{root}/{path}", data)


def make(store: Store, folder: Path, seed: int, *parents: Manifest, **fields: Any) -> Manifest:
    """Publish a small artifact that was made from others."""
    made = tuple(parent.id for parent in parents)
    return store.publish(*sample(folder / str(seed), {"data.bin": b"x" * (seed + 1)}, seed, parents=made, **fields))


def gone(report: GcReport) -> set[str]:
    return {name for ids in report.artifacts.values() for name in ids}


def later(store: Store) -> None:
    """Wait until what was written is older than nothing by the store's clock, which may tell whole seconds."""
    time.sleep(0.01 if store.objects.is_local else 1.1)


def test_an_empty_store_has_nothing_to_lose(store: Store) -> None:
    store.objects.replace("other/object", b"", None)
    report = collect(store, NO_GRACE, delete=True, everything=True)
    assert (gone(report), report.leftovers, report.uploads, report.bytes, report.kept) == (set(), 0, 0, 0, 0)


def test_what_names_reach_stays_and_the_rest_goes(store: Store, tmp_path: Path) -> None:
    old = make(store, tmp_path, 0)
    part = make(store, tmp_path, 1, old)
    whole = make(store, tmp_path, 2, part)
    other = make(store, tmp_path, 3)
    note(store, [entry_of(found) for found in (part, other)])
    set_ref(store, "whole", whole.id)
    later(store)
    dry = collect(store, NO_GRACE)
    assert (gone(dry), dry.deleted, dry.kept) == ({other.id}, False, 3)
    assert store.lookup(other.id) == other
    done = collect(store, NO_GRACE, delete=True, everything=True)
    assert (gone(done), done.deleted, done.complete) == ({other.id}, True, True)
    assert done.bytes == other.nbytes
    assert set(scan(store)) == set(store.ids()) == {old.id, part.id, whole.id}
    assert not store.objects.find(f"artifacts/{other.id}")
    assert gone(collect(store, NO_GRACE, delete=True, everything=True)) == set()
    assert store.objects.names("sweeps") == []


def test_the_grace_time_keeps_what_is_young(store: Store, tmp_path: Path) -> None:
    make(store, tmp_path, 0)
    later(store)
    assert gone(collect(store, Rules(grace_days=1 / 24), delete=True, everything=True)) == set()
    assert gone(collect(store, delete=True, everything=True)) == set()
    assert len(gone(collect(store, NO_GRACE, delete=True, everything=True))) == 1


def test_every_move_of_a_name_counts_unless_told_otherwise(folder_store: Store, tmp_path: Path) -> None:
    made = [make(folder_store, tmp_path, number) for number in range(3)]
    for manifest in made:
        set_ref(folder_store, "best", manifest.id)
    later(folder_store)
    assert gone(collect(folder_store, NO_GRACE)) == set()
    assert gone(collect(folder_store, Rules(grace_days=0, history=2))) == {made[0].id}
    assert gone(collect(folder_store, Rules(grace_days=0, history=1))) == {made[0].id, made[1].id}


def test_what_a_run_has_pinned_stays(store: Store, tmp_path: Path) -> None:
    parent = make(store, tmp_path, 0)
    child = make(store, tmp_path, 1, parent)
    later(store)
    with pin(store, [child.id]):
        assert gone(collect(store, NO_GRACE, delete=True, everything=True)) == set()
    assert gone(collect(store, NO_GRACE, delete=True, everything=True)) == {parent.id, child.id}


def test_evaluations_stay_with_what_they_measured(folder_store: Store, pair: Pair, tmp_path: Path) -> None:
    delta, other = (compress(folder_store, *pair, config_of(cr)) for cr in (4, 5))
    set_ref(folder_store, "delta", delta.manifest.id)
    of_delta = make(folder_store, tmp_path, 0, delta.manifest)
    of_other = make(folder_store, tmp_path, 1, other.manifest)
    of_nothing = make(folder_store, tmp_path, 2)
    later(folder_store)
    lost = gone(collect(folder_store, NO_GRACE, delete=True, everything=True))
    assert {of_other.id, of_nothing.id, other.manifest.id} <= lost
    assert of_delta.id not in lost
    assert verify(folder_store, delta.manifest.id).faults == ()


def test_scratch_is_left_alone_for_an_hour_whatever_the_grace_time(folder_store: Store) -> None:
    put(folder_store, "probes/0", b"in use")
    put(folder_store, "refs/name/.00000001.json.0.tmp", b"in use")
    later(folder_store)
    assert collect(folder_store, NO_GRACE, delete=True, everything=True).leftovers == 0
    then = time.time() - 3700
    for path in Path(folder_store.url).rglob("*"):
        os.utime(path, (then, then))
    assert collect(folder_store, NO_GRACE, delete=True, everything=True).leftovers == 2


def test_what_writers_left_behind_goes_when_it_is_old(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = make(store, tmp_path, 0)
    set_ref(store, "kept", manifest.id)
    put(store, f"artifacts/{manifest.id}/data.0123456789abcdef.bin", b"of another writer")
    put(store, f"artifacts/{'1' * 64}/data.bin", b"no manifest")
    put(store, "refs/kept/.00000002.json.0.tmp", b"scratch")
    monkeypatch.setattr(gc, "_SCRATCH_AGE", NOW)
    later(store)
    young = collect(store, delete=True, everything=True)
    assert (young.leftovers, gone(young), young.bytes) == (0, set(), 0)
    report = collect(store, NO_GRACE, delete=True, everything=True)
    assert (report.leftovers, gone(report)) == (2, set())
    assert report.bytes == len(b"of another writer") + len(b"no manifest") + len(b"scratch")
    left = [path for path in store.objects.find("artifacts") if store.objects.size(path)]
    assert sorted(left) == sorted(
        f"artifacts/{manifest.id}/{name}" for name in ("manifest.json", manifest.files[0].path)
    )
    assert store.lookup(manifest.id) == manifest


def test_nothing_goes_when_something_that_is_kept_cannot_be_read(folder_store: Store, tmp_path: Path) -> None:
    named, other = make(folder_store, tmp_path, 0), make(folder_store, tmp_path, 1)
    set_ref(folder_store, "named", named.id)
    flip(Path(folder_store.url) / "artifacts" / named.id / "manifest.json", 50)
    later(folder_store)
    with pytest.raises(CorruptArtifactError, match=f"{named.id[:12]} are damaged"):
        collect(folder_store, NO_GRACE, delete=True, everything=True)
    assert folder_store.lookup(other.id) == other
    assert folder_store.objects.names("sweeps") == []


def test_what_is_damaged_and_reached_by_nothing_goes(folder_store: Store, tmp_path: Path) -> None:
    lost = make(folder_store, tmp_path, 0)
    flip(Path(folder_store.url) / "artifacts" / lost.id / "manifest.json", 50)
    later(folder_store)
    assert collect(folder_store, NO_GRACE, delete=True, everything=True).artifacts == {"damaged": (lost.id,)}


def test_what_is_pinned_or_named_or_published_while_it_marks_is_spared(
    folder_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, named, parent, lost = (make(folder_store, tmp_path, number) for number in range(4))
    time.sleep(0.6)
    marks = []

    def mark(*arguments: Any) -> Any:
        found = gc_mark(*arguments)
        marks.append(set(found.objects))
        if len(marks) == 1:  # after the first look, before the sweep is announced
            pin(folder_store, [used.id])
            set_ref(folder_store, "named", named.id)
            make(folder_store, tmp_path, 9, parent)
        return found

    gc_mark = gc._mark
    monkeypatch.setattr(gc, "_mark", mark)
    report = collect(folder_store, Rules(grace_days=0.5 / 86400), delete=True, everything=True)
    assert marks == [{used.id, named.id, parent.id, lost.id}, {lost.id}]
    assert gone(report) == {lost.id}
    assert {used.id, named.id, parent.id} <= set(folder_store.ids())


def test_it_announces_what_it_deletes_before_it_looks_at_the_pins_again(
    folder_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = make(folder_store, tmp_path, 0)
    later(folder_store)
    seen: list[int] = []

    def look(store: Store) -> frozenset[str]:
        seen.append(len(store.objects.names("sweeps")))
        return pinned_ids(store)

    monkeypatch.setattr(gc, "pinned_ids", look)
    assert gone(collect(folder_store, NO_GRACE, delete=True, everything=True)) == {lost.id}
    assert seen == [0, 1]


def test_it_ends_early_rather_than_outlast_its_announcement(
    folder_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = [make(folder_store, tmp_path, number) for number in range(3)]
    later(folder_store)
    monkeypatch.setattr(pins, "SWEEP_LEASE", timedelta(seconds=-1))
    report = collect(folder_store, NO_GRACE, delete=True, everything=True)
    assert not report.complete
    assert len(folder_store.ids()) == len(lost)
    monkeypatch.undo()
    assert collect(folder_store, NO_GRACE, delete=True, everything=True).complete
    assert folder_store.ids() == []


def test_a_clock_that_jumps_by_a_day_makes_nothing_old(folder_store: Store, tmp_path: Path) -> None:
    make(folder_store, tmp_path, 0)
    then = time.time() - 86_400
    for path in Path(folder_store.url).rglob("*"):
        os.utime(path, (then, then))
    assert gone(collect(folder_store, delete=True, everything=True)) == set()


def test_what_measures_a_measurement_stays_in_no_order(folder_store: Store, tmp_path: Path) -> None:
    model = make(folder_store, tmp_path, 0)
    set_ref(folder_store, "named", model.id)
    first = [make(folder_store, tmp_path, number, model) for number in range(1, 6)]
    second = [make(folder_store, tmp_path, 6 + number, model, one) for number, one in enumerate(first)]
    later(folder_store)
    assert gone(collect(folder_store, NO_GRACE, delete=True, everything=True)) == {one.id for one in second}


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_it_keeps_just_what_roots_reach(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("gc")
    store, made = Store(folder / "store"), []
    for number in range(data.draw(st.integers(1, 6))):
        parents = data.draw(st.sets(st.sampled_from(range(number)))) if number else set()
        made.append(make(store, folder, number, *(made[parent] for parent in sorted(parents))))
    roots = data.draw(st.sets(st.sampled_from(range(len(made)))))
    for root in roots:
        set_ref(store, f"root-{root}", made[root].id)
    later(store)
    collect(store, NO_GRACE, delete=True, everything=True)
    kept = set(store.ids())
    reached = {made[root].id for root in roots}
    for manifest in reversed(made):
        if manifest.id in reached:
            reached.update(manifest.parents)
    assert reached <= kept
    # Samples are evaluations: beyond what roots reach only those stay that measured nothing but what stays.
    by_id = {manifest.id: manifest for manifest in made}
    assert all(set(by_id[name].parents) <= reached and by_id[name].parents for name in kept - reached)


def test_a_delta_that_is_gone_can_be_made_again(folder_store: Store, pair: Pair) -> None:
    before: Delta = compress(folder_store, *pair, config_of(4))
    later(folder_store)
    collect(folder_store, NO_GRACE, delete=True, everything=True)
    assert folder_store.ids() == []
    assert compress(folder_store, *pair, config_of(4)).manifest.files == before.manifest.files
