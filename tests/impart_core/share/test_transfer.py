"""Copying between stores: everything that is needed, byte for byte, checked on the way, whole or not at all."""

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import s3fs

from impart_core.apply.dense import reconstruct
from impart_core.artifacts.block import BlockContent
from impart_core.artifacts.delta import Delta, open_delta
from impart_core.artifacts.evaluation import EvaluationContent
from impart_core.base.errors import ArtifactNotFoundError, ConfigError, CorruptArtifactError, StoreError
from impart_core.checkpoint.index import open_checkpoint
from impart_core.share.transfer import TransferReport, TransferSettings, transfer
from impart_core.store import pins
from impart_core.store.catalog import scan
from impart_core.store.manifest import FileEntry, Manifest, Pointer
from impart_core.store.names import all_refs, get_ref, set_ref
from impart_core.store.provenance import Stopwatch
from impart_core.store.recipe import Recipe
from impart_core.store.refs import new_move, numbers_of, write_move
from impart_core.store.store import Store
from impart_core.store.verify import verify
from tests.impart_core.pipeline import compress, config_of, flip, stored_path
from tests.impart_core.store.samples import evaluation_of, sample
from tests.impart_core.store.test_store import objects

Pair = tuple[Path, Path]


@pytest.fixture(scope="module")
def original(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A store of a delta with factors, an evaluation of it and one of its base, and another delta; the delta's id."""
    folder = tmp_path_factory.mktemp("original")
    store = Store(folder / "store")
    delta = compress(store, *pair, config_of(4), keep_factors=True)
    compress(store, *pair, config_of(5, seed=1))
    evaluation_of(store, {"delta": delta.manifest.id}, (delta.manifest.id,))
    evaluation_of(store, {"checkpoint": delta.content.base})
    set_ref(store, "math@prod", delta.manifest.id)
    return folder / "store", delta.manifest.id


@pytest.fixture
def delta(original: tuple[Path, str], tmp_path: Path) -> Delta:
    """The delta in a store of its own, free to be damaged."""
    shutil.copytree(original[0], tmp_path / "source")
    return open_delta(Store(tmp_path / "source"), original[1])


@pytest.fixture(params=["folder", "memory", pytest.param("s3", marks=pytest.mark.e2e)])
def target(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    if request.param == "folder":
        return Store(tmp_path / "target")
    if request.param == "s3":
        for name, value in request.getfixturevalue("s3").items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        return Store(f"s3://impart/{uuid.uuid4().hex}")
    return Store(f"memory://{uuid.uuid4().hex}")


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    """An empty store for what does not depend on its kind."""
    return Store(tmp_path / "target")


def send(delta: Delta, target: Store, **options: bool) -> TransferReport:
    return transfer(delta.store, target, [delta.manifest.id], TransferSettings(**options))


def artifacts(store: Store) -> dict[str, bytes]:
    return {path: data for path, data in objects(store).items() if path.startswith("artifacts/")}


def test_a_delta_arrives_with_blocks_evaluations_and_name_byte_for_byte(delta: Delta, target: Store) -> None:
    report = send(delta, target)
    assert report.copied.artifacts == {"block": 3, "delta": 1, "evaluation": 1}
    assert report.skipped.artifacts == {}
    there = artifacts(delta.store)
    copied = artifacts(target)
    assert {path: there[path] for path in copied} == copied
    assert report.copied.bytes == sum(map(len, copied.values()))
    assert report.copied.files == len(copied) - 5
    assert all_refs(target) == report.names == {"math@prod": delta.manifest.id}


def test_what_arrived_is_whole_catalogued_and_rebuilds_the_same_model(
    delta: Delta, target: Store, pair: Pair, tmp_path: Path
) -> None:
    send(delta, target)
    assert verify(target, delta.manifest.id).faults == ()
    before = objects(target)
    there = scan(delta.store)
    assert scan(target) == {made: there[made] for made in target.ids()}
    assert objects(target) == before
    assert len([path for path in before if path.startswith("catalog/")]) == 1
    base = open_checkpoint(pair[0])
    for number, store in enumerate((delta.store, target)):
        reconstruct(open_delta(store, delta.manifest.id), base, tmp_path / f"out{number}")
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / f"out{n}").iterdir()} for n in (0, 1))
    assert one == two


def test_it_comes_back_as_it_went(delta: Delta, target: Store, tmp_path: Path) -> None:
    send(delta, target, factors=True)
    back = Store(tmp_path / "back")
    transfer(target, back, [delta.manifest.id], TransferSettings(factors=True))
    assert artifacts(back) == artifacts(target)
    assert all_refs(back) == {"math@prod": delta.manifest.id}


def test_a_second_time_nothing_is_copied(delta: Delta, target: Store) -> None:
    first = send(delta, target)
    before = objects(target)
    again = send(delta, target)
    assert (again.copied.artifacts, again.copied.bytes) == ({}, 0)
    assert again.skipped == first.copied
    assert objects(target) == before


def test_factors_come_on_request_and_evaluations_stay_on_request(delta: Delta, folder: Store) -> None:
    assert send(delta, folder, evaluations=False).copied.artifacts == {"block": 3, "delta": 1}
    assert send(delta, folder, evaluations=False, factors=True).copied.artifacts == {"factors": 2}
    assert send(delta, folder, factors=True).copied.artifacts == {"evaluation": 1}


def test_factors_that_the_source_never_had_are_not_missed(delta: Delta, folder: Store, tmp_path: Path) -> None:
    send(delta, folder)
    onward = Store(tmp_path / "onward")
    assert transfer(folder, onward, [delta.manifest.id], TransferSettings(factors=True)).copied.artifacts == {
        "block": 3,
        "delta": 1,
        "evaluation": 1,
    }


def test_any_artifact_can_be_copied_alone_and_shared_parts_once(delta: Delta, folder: Store) -> None:
    entries = scan(delta.store).values()
    deltas = [entry.id for entry in entries if entry.kind == "delta"]
    alone = [entry.id for entry in entries if entry.kind in ("block", "evaluation")]
    seen: list[tuple[int, int, int, int]] = []
    report = transfer(delta.store, folder, [*deltas, *alone], progress=lambda *done: seen.append(done))
    assert set(folder.ids()) == {*deltas, *alone}
    assert report.copied.artifacts["delta"] == 2
    assert seen[0][:2] == (0, len(folder.ids()))
    assert seen[-1] == (len(folder.ids()), len(folder.ids()), report.copied.bytes, report.copied.bytes)


def test_the_artifact_that_was_asked_for_comes_last(
    delta: Delta, folder: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    publish = Store.publish

    def watched(self: Store, manifest: Manifest, *args: object, **trust: bool) -> Manifest:
        order.append(manifest.content.kind)
        return publish(self, manifest, *args, **trust)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "publish", watched)
    send(delta, folder, factors=True)
    assert order == ["factors"] * 2 + ["block"] * 3 + ["evaluation", "delta"]


def test_a_name_that_points_elsewhere_is_moved_on_request_only(delta: Delta, target: Store) -> None:
    set_ref(target, "math@prod", "1" * 64)
    before = objects(target)
    with pytest.raises(StoreError, match=r"math@prod \(111111111111, not .*--move-names"):
        send(delta, target)
    assert objects(target) == before
    send(delta, target, move_names=True)
    assert get_ref(target, "math@prod") == delta.manifest.id
    assert numbers_of(target, "math@prod") == [1, 2]


def test_a_name_that_is_not_one_is_refused_before_anything_is_copied(delta: Delta, folder: Store) -> None:
    write_move(delta.store, "abcdef", new_move(1, delta.manifest.id, "forged"))
    with pytest.raises(ConfigError, match="'abcdef' cannot name an artifact"):
        send(delta, folder)
    assert objects(folder) == {}


@pytest.mark.parametrize("damage", [lambda path: flip(path, -1), Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_damaged_block_is_named_and_keeps_its_delta_back(
    damage: Callable[[Path], object], delta: Delta, target: Store
) -> None:
    path = stored_path(delta, 1)
    damage(path)
    with pytest.raises(CorruptArtifactError, match=f"{path.name} .*What depends on it was not copied"):
        send(delta, target)
    assert not {delta.manifest.id, delta.blocks[1].id} & set(target.ids())
    assert not [made for made in target.ids() if target.manifest(made).content.kind == "evaluation"]
    assert all_refs(target) == {}


@pytest.mark.parametrize("which", ["delta", "block"])
def test_a_damaged_manifest_is_named(which: str, delta: Delta, folder: Store) -> None:
    broken = delta.manifest.id if which == "delta" else delta.blocks[0].id
    flip(Path(delta.store.url) / "artifacts" / broken / "manifest.json", 100)
    with pytest.raises(CorruptArtifactError, match=broken):
        send(delta, folder)
    assert folder.ids() == []


def test_damage_keeps_back_nothing_else(delta: Delta, folder: Store) -> None:
    (other,) = (entry.id for entry in scan(delta.store).values() if entry.kind == "delta" and "seed 1" in entry.summary)
    (evaluation,) = (entry for entry in scan(delta.store).values() if delta.manifest.id in entry.parents)
    folder_of = Path(delta.store.url) / "artifacts" / evaluation.id
    flip(next(path for path in folder_of.iterdir() if path.name != "manifest.json"), 0)
    with pytest.raises(CorruptArtifactError, match="results"):
        transfer(delta.store, folder, [delta.manifest.id, other])
    assert {delta.manifest.id, other} <= set(folder.ids())
    assert get_ref(folder, "math@prod") == delta.manifest.id


def test_a_block_that_the_target_has_whole_is_not_missed_in_the_source(delta: Delta, folder: Store) -> None:
    transfer(delta.store, folder, [delta.blocks[0].id])
    stored_path(delta, 0).unlink()
    assert send(delta, folder).skipped.artifacts == {"block": 1}
    assert verify(folder, delta.manifest.id).faults == ()


def test_parts_that_are_deleted_from_the_target_meanwhile_are_not_relied_on(delta: Delta, folder: Store) -> None:
    transfer(delta.store, folder, [delta.blocks[0].id])

    def delete(*_: int) -> None:
        shutil.rmtree(Path(folder.url) / "artifacts" / delta.blocks[0].id, ignore_errors=True)

    with pytest.raises(StoreError, match=r"were deleted from .*Run the same command again"):
        transfer(delta.store, folder, [delta.manifest.id], progress=delete)
    assert delta.manifest.id not in folder.ids()
    assert send(delta, folder).copied.artifacts == {"block": 1, "delta": 1}


def test_damage_in_the_target_is_repaired_where_it_is_seen(delta: Delta, folder: Store) -> None:
    send(delta, folder)
    whole = artifacts(folder)
    there = open_delta(folder, delta.manifest.id)
    stored_path(there, 0).write_bytes(b"")
    flip(stored_path(there, 1), -1)
    assert send(delta, folder).copied.artifacts == {"block": 1}
    assert artifacts(folder) != whole
    assert send(delta, folder, reread=True).copied.artifacts == {"block": 1}
    assert artifacts(folder) == whole


def remade(block: Manifest, **fields: object) -> Manifest:
    """Return a block's manifest as another machine might have made it."""
    kept = {"files": block.files, "parents": block.parents, "provenance": block.provenance, "content": block.content}
    return Manifest.make(block.recipe, **{**kept, **fields})


def test_what_the_target_made_itself_stays_in_force_and_is_told(delta: Delta, folder: Store, tmp_path: Path) -> None:
    block = delta.blocks[0]
    entry = block.files[0]
    with delta.store.local_file(block, entry.name) as path:
        place = Path(folder.url) / "artifacts" / block.id
        place.mkdir(parents=True)
        renamed = entry.model_copy(update={"path": f"other.{entry.path}"})
        shutil.copy(path, place / renamed.path)
    own = remade(block, files=(renamed,))
    (place / "manifest.json").write_bytes(own.to_json())
    report = send(delta, folder)
    assert report.otherwise == (block.id,)
    assert folder.manifest(block.id) == own
    assert verify(folder, delta.manifest.id).faults == ()


def test_a_delta_that_does_not_go_with_the_targets_own_blocks_is_refused(delta: Delta, folder: Store) -> None:
    block = delta.blocks[0]
    assert isinstance(block.content, BlockContent)
    content = block.content.model_copy(update={"projection_bytes": block.content.projection_bytes + 1})
    place = Path(folder.url) / "artifacts" / block.id
    shutil.copytree(Path(delta.store.url) / "artifacts" / block.id, place)
    (place / "manifest.json").write_bytes(remade(block, content=content).to_json())
    with pytest.raises(CorruptArtifactError, match="bytes of projections; its blocks hold"):
        send(delta, folder)
    assert folder.ids() == [block.id]


def overwrite(delta: Delta, **fields: object) -> None:
    """Give a delta's manifest other fields, sealed as they should be."""
    content = delta.content.model_copy(update=fields)
    place = Path(delta.store.url) / "artifacts" / delta.manifest.id / "manifest.json"
    place.write_bytes(remade(delta.manifest, content=content).to_json())


def test_a_delta_that_names_itself_as_its_block_is_refused(delta: Delta, folder: Store) -> None:
    overwrite(delta, blocks=(Pointer(name="x", id=delta.manifest.id, bytes=1),))
    with pytest.raises(CorruptArtifactError, match="points to a delta where a block should be"):
        send(delta, folder)
    assert folder.ids() == []


def test_a_delta_that_lacks_a_block_is_refused(delta: Delta, folder: Store) -> None:
    overwrite(delta, blocks=(*delta.content.blocks, Pointer(name="x", id="3" * 64, bytes=1)))
    with pytest.raises(CorruptArtifactError, match="There is no artifact 333333333333"):
        send(delta, folder)
    assert folder.ids() == []


@pytest.mark.parametrize("path", ["../../../escaped", "/tmp/escaped", "manifest.json", "a/b", ".hidden"])
def test_a_file_that_would_lie_elsewhere_is_refused(path: str, tmp_path: Path, folder: Store) -> None:
    source, (manifest, _) = Store(tmp_path / "source"), sample(tmp_path / "scratch")
    entry = manifest.files[0]
    hostile = FileEntry.model_construct(name=entry.name, path=path, size=entry.size, sha256=entry.sha256)
    made = manifest.model_copy(update={"files": (hostile,)})
    sealed = made.model_copy(update={"seal": made._digest()})
    place = tmp_path / "source" / "artifacts" / manifest.id
    place.mkdir(parents=True)
    (place / "manifest.json").write_bytes(sealed.to_json())
    before = {path for path in tmp_path.rglob("*") if "target" not in path.parts}
    with pytest.raises(CorruptArtifactError, match="not a valid manifest"):
        transfer(source, folder, [manifest.id])
    assert objects(folder) == {}
    assert {path for path in tmp_path.rglob("*") if path != tmp_path / "target"} == before


def test_two_files_of_one_place_are_no_valid_manifest(tmp_path: Path) -> None:
    manifest, _ = sample(tmp_path)
    with pytest.raises(ConfigError, match="the same name or place"):
        Manifest.make(
            Recipe(operation="sample", version=1, config={}, inputs={}),
            files=(manifest.files[0], manifest.files[0].model_copy(update={"name": "other"})),
            content=EvaluationContent(metrics={}, items={}),
            provenance=Stopwatch().provenance(),
        )


def test_what_is_not_there_and_a_store_that_is_the_same_are_refused(delta: Delta, folder: Store) -> None:
    with pytest.raises(CorruptArtifactError, match="There is no artifact 000000000000"):
        transfer(delta.store, folder, ["0" * 64])
    with pytest.raises(ArtifactNotFoundError):
        verify(folder, "0" * 64)
    with pytest.raises(ConfigError, match="Both stores are"):
        send(delta, Store(Path(delta.store.url) / ".." / "source"))


@pytest.mark.parametrize("cleaned_up", [True, False])
def test_a_copy_that_was_stopped_for_long_looks_once_more_for_what_it_copied(
    cleaned_up: bool, delta: Delta, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, target = [0.0], Store(tmp_path / "target")
    monkeypatch.setattr(pins, "seconds_awake_or_asleep", lambda: clock[0])

    def sleep(done: int, total: int, *_: int) -> None:
        if done == total and not clock[0]:  # before the names are set
            clock[0] = pins.PIN_LEASE.total_seconds() + 1
            if cleaned_up:
                target.objects.delete(target.objects.find(f"artifacts/{delta.blocks[0].id}"))

    def copy() -> TransferReport:
        return transfer(delta.store, target, [delta.manifest.id], progress=sleep)

    if cleaned_up:
        with pytest.raises(StoreError, match=r"stopped for so long that parts of .* were cleaned up"):
            copy()
    copy()
    assert verify(target, delta.manifest.id).faults == ()
