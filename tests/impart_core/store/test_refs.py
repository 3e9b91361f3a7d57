"""Moves of names are sealed: what was altered, swapped or lost is noticed, stops the collector, and can be mended."""

import logging
import uuid
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path

import pytest

from impart_core.base.canonical import canonical_json
from impart_core.base.errors import (
    ArtifactNotFoundError,
    ConfigError,
    CorruptArtifactError,
    StoreError,
    UnknownNameError,
)
from impart_core.share.transfer import transfer
from impart_core.store.catalog import CatalogEntry, entry_of, list_entries, note
from impart_core.store.gc import collect
from impart_core.store.manifest import Manifest
from impart_core.store.names import all_refs, get_ref, history, require_movable, rollback, set_ref, tag, untag
from impart_core.store.refs import new_move, path_of, read_log, write_move
from impart_core.store.retention import Rules
from impart_core.store.store import Store
from impart_core.store.verify import verify_store
from tests.impart_core.store.samples import NO_GRACE, small_delta

NOW = timedelta(0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def put(store: Store, path: str, data: bytes) -> None:
    """Write an object past the store."""
    store.objects.replace(path, data, None)


def lose(store: Store, artifact_id: str) -> None:
    """Take an artifact away with all its files."""
    store.objects.delete(store.objects.find(f"artifacts/{artifact_id}"))


def content_of(store: Store, path: str) -> bytes:
    data = store.read(path)
    assert data is not None
    return data


def refuses(store: Store, *names: str) -> None:
    """Check that verification names what is wrong with names, and that the collector says so and deletes nothing."""
    faults = verify_store(store).faults
    for name in names:
        assert [fault for fault in faults if f"{name!r}" in fault], faults
    before = set(store.objects.find("artifacts"))
    with pytest.raises(CorruptArtifactError, match="nothing was deleted") as caught:
        collect(store, NO_GRACE, delete=True, everything=True)
    assert all(f"impart untag {name}`" in str(caught.value) for name in names)
    assert set(store.objects.find("artifacts")) == before
    assert store.objects.names("sweeps") == []


def is_well(store: Store) -> None:
    """Check that verification and the collector find nothing wrong."""
    report = verify_store(store)
    assert (report.faults, report.names) == ((), len(all_refs(store)))
    assert collect(store, NO_GRACE, delete=True, everything=True).complete


def test_any_flipped_bit_of_a_move_is_noticed() -> None:
    store = Store(f"memory://{uuid.uuid4().hex}")
    set_ref(store, "math@prod", "1" * 64, why="compress")
    path = path_of("math@prod", 1)
    original = content_of(store, path)
    for position in range(len(original)):
        for bit in range(8):
            data = bytearray(original)
            data[position] ^= 1 << bit
            put(store, path, bytes(data))
            assert set(read_log(store, "math@prod").damaged) == {1}, (position, bit)
    put(store, path, original)
    assert get_ref(store, "math@prod") == "1" * 64


def test_whichever_byte_of_a_move_is_altered_verification_tells_and_nothing_is_deleted() -> None:
    store = Store(f"memory://{uuid.uuid4().hex}")
    delta = small_delta(store, blocks=1)
    small_delta(store, seed=1, blocks=1)
    set_ref(store, "math", delta.id)
    path = path_of("math", 1)
    original = content_of(store, path)
    for position in range(len(original)):
        put(store, path, original[:position] + bytes([original[position] ^ 1]) + original[position + 1 :])
        refuses(store, "math")
    put(store, path, original)
    is_well(store)
    assert store.lookup(delta.id)


def test_swapped_names_are_noticed(store: Store) -> None:
    deltas = [small_delta(store, seed) for seed in range(2)]
    paths = [path_of(name, 1) for name in ("math", "code")]
    for name, delta in zip(("math", "code"), deltas, strict=True):
        set_ref(store, name, delta.id)
    both = [content_of(store, path) for path in paths]
    for path, data in zip(paths, reversed(both), strict=True):
        put(store, path, data)
    with pytest.raises(CorruptArtifactError, match="is move 1 of 'code'"):
        get_ref(store, "math")
    refuses(store, "math", "code")


def test_swapped_moves_of_one_name_are_noticed(store: Store) -> None:
    for seed in range(2):
        set_ref(store, "math", small_delta(store, seed).id)
    first, second = path_of("math", 1), path_of("math", 2)
    one, two = content_of(store, first), content_of(store, second)
    put(store, first, two)
    put(store, second, one)
    with pytest.raises(CorruptArtifactError, match="is move 1 of 'math'"):
        get_ref(store, "math")
    refuses(store, "math")


def test_a_move_that_is_missing_between_others_is_noticed(store: Store) -> None:
    for seed in range(4):
        set_ref(store, "math", small_delta(store, seed).id)
    store.objects.delete([path_of("math", 2), path_of("math", 3)])
    assert list(read_log(store, "math").damaged) == [2]
    refuses(store, "math")
    put(store, path_of("math", 99_999_999), b"far away")
    assert list(read_log(store, "math").damaged) == [2, 5, 99_999_999]


@pytest.mark.parametrize("what", ["the delta", "its manifest", "a block", "manifest of a block"])
def test_a_name_that_points_to_what_is_lost_or_lacks_a_part_stops_the_collector(what: str, store: Store) -> None:
    delta = small_delta(store)
    small_delta(store, seed=1)
    set_ref(store, "math", delta.id)
    lost = delta.id if "block" not in what else delta.parents[0]
    if "manifest" in what:
        store.objects.delete([f"artifacts/{lost}/manifest.json"])
    else:
        lose(store, lost)
    refuses(store, "math")
    small_delta(store)  # made anew
    is_well(store)
    assert get_ref(store, "math") == delta.id


@pytest.mark.parametrize("what", ["delta", "block", "factors"])
def test_a_manifest_on_the_way_that_cannot_be_read_stops_the_collector(what: str, store: Store) -> None:
    delta = small_delta(store)
    set_ref(store, "math", delta.id)
    block = store.manifest(delta.parents[0])
    note(store, map(entry_of, (delta, block, store.manifest(block.parents[0]))))  # the catalogue knows better
    damaged = {"delta": delta.id, "block": block.id, "factors": block.parents[0]}[what]
    put(store, f"artifacts/{damaged}/manifest.json", b"{}")
    before = set(store.objects.find("artifacts"))
    with pytest.raises(CorruptArtifactError, match=f"{damaged[:12]} are damaged"):
        collect(store, NO_GRACE, delete=True, everything=True)
    assert set(store.objects.find("artifacts")) == before


def test_what_a_catalogue_says_deletes_nothing(store: Store) -> None:
    delta = small_delta(store)
    set_ref(store, "math", delta.id)
    note(store, [entry_of(delta).model_copy(update={"parents": (), "started": "9999"})])
    note(store, [CatalogEntry(id=made, kind="block", started="9999") for made in delta.parents])
    before = set(store.objects.find("artifacts"))
    assert collect(store, NO_GRACE, delete=True, everything=True).artifacts == {}
    assert set(store.objects.find("artifacts")) == before


def damaged_pair(store: Store, *, copied: bool = False) -> tuple[Manifest, Manifest]:
    """Name two deltas, one under a name whose last move is damaged then, and has a copy or none."""
    one, two = small_delta(store), small_delta(store, seed=1)
    tag(store, "well", one.id)
    for delta in (one, two):
        tag(store, "math", delta.id)
    put(store, path_of("math", 2), b"damaged")
    if not copied:
        store.objects.delete(["refs/math/00000002.copy.json"])
    return one, two


def test_a_damaged_name_stops_no_work_with_the_others(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = damaged_pair(store)
    works: list[Callable[[], object]] = [
        lambda: list_entries(store),
        lambda: transfer(store, Store(tmp_path / "other"), [one.id, two.id]),
    ]
    for work in works:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            work()
        assert f"The name 'math' cannot be read: {store.url}/refs/math/00000002.json is not a ref." in caplog.text
        assert f"`impart tag {one.id[:12]} math`" in caplog.text
    assert [move.id for move in history(store, "well")] == [one.id]
    assert {entry.id: entry.names for entry in list_entries(store)} == {one.id: ("well",), two.id: ()}
    assert all_refs(Store(tmp_path / "other")) == {"well": one.id}


@pytest.mark.parametrize("verb", [history, rollback, get_ref])
@pytest.mark.parametrize("copied", [True, False])
def test_a_damaged_name_says_what_mends_it(verb: Callable[[Store, str], object], copied: bool, store: Store) -> None:
    one, two = damaged_pair(store, copied=copied)
    with pytest.raises(CorruptArtifactError) as caught:
        verb(store, "math")
    known = "The copy of move 2 says that it led" if copied else "The last move that can be read is 1,"
    ref = (two if copied else one).id[:12]
    assert f"{known} to {ref}: `impart tag {ref} math`" in str(caught.value)


@pytest.mark.parametrize("moves", [1, 2, 3])
@pytest.mark.parametrize("lost", [1, 2])
def test_the_loss_of_the_last_moves_is_noticed_and_mended(moves: int, lost: int, store: Store) -> None:
    deltas = [small_delta(store, seed) for seed in range(moves)]
    other = small_delta(store, seed=9)
    set_ref(store, "other", other.id)
    for delta in deltas:
        set_ref(store, "math", delta.id)
    store.objects.delete(path_of("math", number) for number in range(1, moves + 1)[-lost:])
    last = deltas[-1].id
    with pytest.raises(CorruptArtifactError, match=rf"{moves:08d}\.json is missing.*`impart tag {last[:12]} math`"):
        get_ref(store, "math")
    with pytest.raises(CorruptArtifactError, match="is missing"):
        set_ref(store, "math", other.id)
    assert all_refs(store) == {"other": other.id}
    refuses(store, "math")
    assert tag(store, "math", last).number == moves + 1
    assert get_ref(store, "math") == last
    is_well(store)
    assert untag(store, "math") == len(set(range(1, moves + 2)) - set(range(1, moves + 1)[-lost:]))
    assert store.objects.names("refs/math") == []
    is_well(store)


def test_a_name_that_cannot_be_moved_is_told_before_any_work(store: Store) -> None:
    damaged_pair(store)
    require_movable(store, "new")
    require_movable(store, "well")
    with pytest.raises(CorruptArtifactError, match="`impart untag math` removes the name"):
        require_movable(store, "math")
    with pytest.raises(ConfigError, match="cannot name an artifact"):
        require_movable(store, "a/b")


def test_a_name_of_which_all_but_a_copy_is_lost_can_be_removed(store: Store) -> None:
    set_ref(store, "math", small_delta(store).id)
    store.objects.delete([path_of("math", 1)])
    refuses(store, "math")
    assert untag(store, "math") == 1
    is_well(store)


@pytest.mark.parametrize("copy", [b"", b"damaged", None])
def test_a_copy_that_is_lost_or_damaged_changes_nothing(copy: bytes | None, store: Store) -> None:
    one, two = (small_delta(store, seed) for seed in range(2))
    for delta in (one, two):
        set_ref(store, "math", delta.id)
    if copy is None:
        store.objects.delete(["refs/math/00000002.copy.json"])
    else:
        put(store, "refs/math/00000002.copy.json", copy)
    assert get_ref(store, "math") == two.id
    is_well(store)
    assert rollback(store, "math").number == 3
    is_well(store)


def test_a_move_whose_name_is_removed_meanwhile_leaves_no_copy(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    one = small_delta(store).id
    create = store.objects.create

    def overtaken(path: str, data: bytes) -> bool:
        if path.endswith(".copy.json"):
            untag(store, "math")
        return create(path, data)

    monkeypatch.setattr(store.objects, "create", overtaken)
    set_ref(store, "math", one)
    assert store.objects.names("refs/math") == []
    assert get_ref(store, "math") is None


def test_a_copy_that_is_written_while_its_name_is_removed_goes_too(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_ref(store, "math", small_delta(store).id)
    copy = content_of(store, "refs/math/00000001.copy.json")
    store.objects.delete(["refs/math/00000001.copy.json"])
    delete = store.objects.delete

    def overtaken(paths: Iterable[str]) -> None:
        gone = list(paths)
        delete(gone)
        if path_of("math", 1) in gone:
            store.objects.create("refs/math/00000001.copy.json", copy)

    monkeypatch.setattr(store.objects, "delete", overtaken)
    assert untag(store, "math") == 1
    assert store.objects.names("refs/math") == []


def test_a_tag_goes_on_past_what_is_damaged_and_says_so(store: Store) -> None:
    one, two = damaged_pair(store)
    refuses(store, "math")
    made = tag(store, "math", one.id)
    assert (made.number, made.why) == (3, "tag, past damaged moves: 2")
    assert [move.number for move in history(store, "math")] == [1, 3]
    assert tag(store, "math", one.id) == made
    is_well(store)
    assert store.lookup(two.id) is None  # nothing readable names it
    with pytest.raises(CorruptArtifactError, match="Move 2 of 'math' is damaged"):
        rollback(store, "math")
    assert rollback(store, "math", 1).id == one.id


def test_what_is_damaged_later_is_not_given_up(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    one, two = (small_delta(store, seed) for seed in range(2))
    for delta in (one, two, one):
        tag(store, "math", delta.id)
    put(store, path_of("math", 2), b"damaged")
    refuses(store, "math")
    assert get_ref(store, "math") == one.id
    assert [move.number for move in history(store, "math")] == [1, 3]
    assert "00000002.json is not a ref" in caplog.text
    assert collect(
        store, Rules(grace_days=0, history=1), delete=True, everything=True
    ).complete  # the last moves can be read
    assert tag(store, "math", one.id).number == 4
    is_well(store)


def test_a_name_is_removed_with_all_its_moves_damaged_or_not(store: Store) -> None:
    one, two = damaged_pair(store)
    assert untag(store, "math") == 2
    assert all_refs(store) == {"well": one.id}
    assert store.objects.names("refs/math") == []
    is_well(store)
    assert store.lookup(two.id) is None
    with pytest.raises(UnknownNameError, match="Unknown name 'math'"):
        untag(store, "math")
    assert untag(store, "well") == 1
    with pytest.raises(ArtifactNotFoundError, match="holds no names"):
        untag(store, "well")


def test_whoever_is_killed_while_removing_a_name_leaves_it_where_it_was(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [small_delta(store, seed).id for seed in range(3)]
    for artifact in made:
        tag(store, "math", artifact)
    seen, unlink = [], Path.unlink

    def watched(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok=missing_ok)
        if "refs" in path.parts:
            seen.append(get_ref(store, "math"))

    monkeypatch.setattr(Path, "unlink", watched)
    untag(store, "math")
    assert seen == [made[2]] * 5 + [None]


def test_a_name_that_is_moved_while_it_is_removed_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (small_delta(store, seed).id for seed in range(2))
    tag(store, "math", one)
    delete = store.objects.delete

    def overtaken(paths: list[str]) -> None:
        if paths == [path_of("math", 1)]:
            set_ref(store, "math", two)
        delete(paths)

    monkeypatch.setattr(store.objects, "delete", overtaken)
    with pytest.raises(StoreError, match=r"moved by someone else at this moment \(move 2\), and stays"):
        untag(store, "math")
    assert get_ref(store, "math") == two


def test_moves_of_early_versions_are_read(store: Store) -> None:
    one, two = (small_delta(store, seed).id for seed in range(2))
    put(store, path_of("math", 1), canonical_json({"id": one, "moved": "2026-01-01", "by": "ann", "why": "tag"}))
    assert get_ref(store, "math") == one
    is_well(store)
    small_delta(store, seed=1)
    assert tag(store, "math", two).number == 2
    assert (history(store, "math")[0].id, history(store, "math")[0].by) == (one, "ann")
    assert rollback(store, "math").id == one
    is_well(store)


@pytest.mark.parametrize("lost", ["a block", "a file of a block", "a byte of a file"])
def test_only_what_is_whole_with_its_parts_is_tagged_or_rolled_back_to(lost: str, store: Store) -> None:
    one, two = (small_delta(store, seed) for seed in range(2))
    for delta in (one, two):
        tag(store, "math", delta.id)
    block = store.manifest(one.parents[1])
    if lost == "a block":
        lose(store, block.id)
    elif lost == "a file of a block":
        store.objects.delete([f"artifacts/{block.id}/{block.files[0].path}"])
    else:
        put(store, f"artifacts/{block.id}/{block.files[0].path}", b"short")
    for verb in (
        lambda: tag(store, "math", one.id),
        lambda: tag(store, "new", one.id),
        lambda: rollback(store, "math"),
    ):
        with pytest.raises(CorruptArtifactError, match=f"The delta {one.id[:12]} is not whole"):
            verb()
    assert all_refs(store) == {"math": two.id}


def test_a_name_moves_on_past_eight_digits_and_says_where_it_ends(store: Store) -> None:
    one, two = (small_delta(store, seed).id for seed in range(2))
    for number, after in ((99_999_999, 10**8), (10**18 - 2, 10**18 - 1)):
        store.objects.delete(store.objects.find("refs"))
        assert write_move(store, "math", new_move(number, one, "forged"))
        assert set_ref(store, "math", two).number == after
        assert get_ref(store, "math") == all_refs(store)["math"] == two
    with pytest.raises(StoreError, match=r"cannot be moved on\. `impart untag math` removes it"):
        set_ref(store, "math", one)
