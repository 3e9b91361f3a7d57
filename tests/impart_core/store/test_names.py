"""Names for artifacts: moved atomically, their history kept, nothing outside the store."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.base.canonical import canonical_json
from impart_core.base.errors import (
    ArtifactNotFoundError,
    ConfigError,
    CorruptArtifactError,
    StoreError,
    UnknownNameError,
)
from impart_core.store.names import (
    all_refs,
    get_ref,
    history,
    require_ref_name,
    resolve,
    rollback,
    set_ref,
    tag,
)
from impart_core.store.store import Store
from impart_core.store.who import user_name
from tests.impart_core.store.samples import sample

ONE, TWO = "1" * 64, "2" * 64


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(tmp_path / "store" if request.param == "folder" else f"memory://{uuid.uuid4().hex}")


def test_a_name_points_to_what_it_was_last_moved_to(store: Store) -> None:
    assert get_ref(store, "math@prod") is None
    for artifact_id in (ONE, TWO, ONE):
        set_ref(store, "math@prod", artifact_id)
        assert get_ref(store, "math@prod") == artifact_id
    set_ref(store, "code", TWO)
    assert all_refs(store) == {"code": TWO, "math@prod": ONE}


def test_every_move_is_kept_and_pointing_to_the_same_writes_nothing(store: Store) -> None:
    for artifact_id in (ONE, ONE, TWO, TWO, ONE):
        set_ref(store, "math", artifact_id)
    moves = ["00000001", "00000002", "00000003"]
    assert store.objects.names("refs/math") == [f"{move}{end}" for move in moves for end in (".copy.json", ".json")]
    for move in moves:
        assert store.read(f"refs/math/{move}.json") == store.read(f"refs/math/{move}.copy.json")
    assert ONE.encode() in (store.read("refs/math/00000001.json") or b"")


def test_the_tenth_move_comes_after_the_ninth(store: Store) -> None:
    ids = [f"{number:064x}" for number in range(12)]
    for artifact_id in ids:
        set_ref(store, "math", artifact_id)
    assert get_ref(store, "math") == ids[-1]


def test_an_artifact_is_found_by_name_full_id_and_beginning(store: Store, tmp_path: Path) -> None:
    manifest = store.publish(*sample(tmp_path / "scratch"))
    set_ref(store, "math@prod", manifest.id)
    for ref in ("math@prod", manifest.id, manifest.id[:6], manifest.id[:12]):
        assert resolve(store, ref) == manifest.id


def test_a_beginning_that_fits_several_ids_asks_for_more_digits(store: Store) -> None:
    ids = ["abcdef" + digit * 58 for digit in "01"]
    for artifact_id in ids:
        store.objects.create(f"artifacts/{artifact_id}/manifest.json", b"{}")
    with pytest.raises(ConfigError, match=r"beginning of 2 artifact ids. Give more digits"):
        resolve(store, "abcdef")
    assert resolve(store, "abcdef1") == ids[1]


def test_a_beginning_of_fewer_than_six_digits_is_no_id(store: Store, tmp_path: Path) -> None:
    manifest = store.publish(*sample(tmp_path / "scratch"))
    with pytest.raises(ArtifactNotFoundError):
        resolve(store, manifest.id[:5])


def test_an_unknown_name_is_answered_with_the_nearest(store: Store) -> None:
    store.objects.replace("other/object", b"", None)
    with pytest.raises(ArtifactNotFoundError, match="holds no names"):
        resolve(store, "maths")
    set_ref(store, "math@prod", ONE)
    with pytest.raises(UnknownNameError, match="Did you mean 'math@prod'"):
        resolve(store, "math@prd")


ESCAPES = [
    "..",
    ".",
    "",
    "/",
    "/etc/passwd",
    "../artifacts",
    "a/b",
    "a/../b",
    "..\\b",
    "%2e%2e",
    "..%2fartifacts",
    "a\0",
    "a\n",
    " a",
    ".hidden",
    "-flag",
    "a@",
    "@a",
    "a@b@c",
    "a@..",
    "name with space",
    "größe",
    "s3://bucket",
    "~root",
    "*",
    "x" * 129,
]


@pytest.mark.parametrize("name", ESCAPES)
def test_a_name_that_could_leave_its_place_is_refused_and_never_read(name: str, store: Store) -> None:
    with pytest.raises(ConfigError, match="cannot name an artifact"):
        set_ref(store, name, ONE)
    assert get_ref(store, name) is None
    with pytest.raises((ArtifactNotFoundError, UnknownNameError)):
        resolve(store, name)
    assert store.objects.names("refs") == []


@pytest.mark.parametrize("name", ["abcdef", "0123456789", "a" * 64])
def test_a_name_that_looks_like_an_id_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="not just hexadecimal digits"):
        require_ref_name(name)


@pytest.mark.parametrize("name", ["a", "abcde", "abcdefg", "wizardmath-13b@prod", "a..b", "A_b.c-d", "x" * 128])
def test_ordinary_names_are_taken_as_they_are(name: str, store: Store) -> None:
    set_ref(store, name, ONE)
    assert all_refs(store) == {require_ref_name(name): ONE}


@given(st.text(max_size=20))
def test_an_accepted_name_is_one_plain_path_segment(name: str) -> None:
    try:
        require_ref_name(name)
    except ConfigError:
        return
    assert Path(name).name == name
    assert name.isascii()
    assert name.isprintable()
    assert not name.startswith(".")


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"id":"../../x","moved":""}'])
def test_a_damaged_ref_is_a_sentence_with_the_way_back(damage: bytes, store: Store) -> None:
    set_ref(store, "math", ONE)
    store.objects.create("refs/math/00000002.json", damage)
    back = r"00000002.json is not a ref. The last move that can be read is 1, to 111111111111: `impart tag 111111111111"
    with pytest.raises(CorruptArtifactError, match=back):
        get_ref(store, "math")


def test_stray_files_beside_a_refs_moves_are_ignored(store: Store) -> None:
    set_ref(store, "math", ONE)
    store.objects.create("refs/math/notes.txt", b"x")
    assert get_ref(store, "math") == ONE


def published(store: Store, scratch: Path, count: int = 3) -> list[str]:
    """Publish small artifacts and return their ids."""
    return [store.publish(*sample(scratch / str(seed), seed=seed)).id for seed in range(count)]


def test_history_tells_every_move_with_when_by_whom_and_why(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMPART_WHO", "user")
    one, two, _ = published(store, tmp_path)
    set_ref(store, "math", one, why="compress")
    tag(store, "math", two)
    moves = history(store, "math")
    assert [(move.number, move.id, move.why) for move in moves] == [(1, one, "compress"), (2, two, "tag")]
    assert {move.by for move in moves} == {user_name()}
    assert all(move.moved.endswith("+00:00") for move in moves)


def test_a_tag_on_what_does_not_exist_is_refused_and_writes_nothing(store: Store) -> None:
    with pytest.raises(ArtifactNotFoundError, match="no artifact 111111111111"):
        tag(store, "math", ONE)
    assert store.objects.names("refs") == []


def test_a_rollback_is_one_more_move_to_an_earlier_artifact(store: Store, tmp_path: Path) -> None:
    one, two, three = published(store, tmp_path)
    for artifact in (one, two, three):
        tag(store, "math", artifact)
    before = history(store, "math")
    assert rollback(store, "math").id == two
    assert rollback(store, "math", 1).id == one
    assert history(store, "math")[:3] == before
    assert [move.why for move in history(store, "math")[3:]] == ["rollback to 2", "rollback to 1"]
    assert get_ref(store, "math") == one


def test_each_further_rollback_goes_further_back_and_never_to_what_was_rolled_back(
    store: Store, tmp_path: Path
) -> None:
    one, two, three = published(store, tmp_path)
    for artifact in (one, two, three):
        tag(store, "math", artifact)
    assert [rollback(store, "math").id for _ in range(2)] == [two, one]
    with pytest.raises(ConfigError, match="back at its first move: there is nothing further back"):
        rollback(store, "math")
    tag(store, "math", three)  # after a new move, the one before it is what was in force
    assert rollback(store, "math").id == one
    assert rollback(store, "math", 3).id == three  # forwards, too
    assert rollback(store, "math").id == two
    whys = [move.why.removeprefix("rollback to ") for move in history(store, "math")[3:]]
    assert whys == ["2", "1", "tag", "1", "3", "2"]


def test_a_reason_that_leads_nowhere_or_in_a_circle_is_no_rollback(store: Store, tmp_path: Path) -> None:
    ids = published(store, tmp_path)
    for artifact, why in zip(ids, ["rollback to 9", f"rollback to {'9' * 5000}", "rollback to 3"], strict=True):
        set_ref(store, "math", artifact, why)
    assert rollback(store, "math").id == ids[1]


def test_a_rollback_to_what_is_in_force_writes_nothing(store: Store, tmp_path: Path) -> None:
    one, two, _ = published(store, tmp_path)
    for artifact in (one, two, one):
        tag(store, "math", artifact)
    assert rollback(store, "math", 1).number == 3
    assert len(history(store, "math")) == 3


def test_there_must_be_something_to_roll_back_to(store: Store, tmp_path: Path) -> None:
    one, two, _ = published(store, tmp_path)
    with pytest.raises(ArtifactNotFoundError, match="holds no names"):
        rollback(store, "math")
    tag(store, "math", one)
    with pytest.raises(ConfigError, match="moved once only"):
        rollback(store, "math")
    tag(store, "math", two)
    for wrong in (0, 3, -1):
        with pytest.raises(ConfigError, match=rf"no move {wrong}. Its moves are 1 to 2"):
            rollback(store, "math", wrong)
    with pytest.raises(UnknownNameError, match="Did you mean 'math'"):
        rollback(store, "maths")
    for verb in (history, rollback):
        with pytest.raises(UnknownNameError):
            verb(store, "../artifacts")


def test_a_rollback_to_an_artifact_that_is_gone_is_refused(store: Store, tmp_path: Path) -> None:
    (one,) = published(store, tmp_path, 1)
    set_ref(store, "math", ONE)
    tag(store, "math", one)
    with pytest.raises(ArtifactNotFoundError, match="cannot go back to move 1: its artifact 111111111111 is no longer"):
        rollback(store, "math")
    assert len(history(store, "math")) == 2


def test_a_rollback_gives_way_to_another_writer_whose_move_stays(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, three = published(store, tmp_path)
    for artifact in (one, two):
        tag(store, "math", artifact)
    create = store.objects.create

    def overtaken(path: str, data: bytes) -> bool:
        """Let another writer move the name right before each of our moves."""
        if path.startswith("refs/"):
            create(path, f'{{"id":"{three}","moved":"","by":"other","why":""}}'.encode())
        return create(path, data)

    monkeypatch.setattr(store.objects, "create", overtaken)
    with pytest.raises(StoreError, match="moved by someone else at this moment, and was not rolled back"):
        rollback(store, "math")
    assert [move.id for move in history(store, "math")] == [one, two, three]


def test_many_writers_at_once_lose_no_move_and_rewrite_none(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    ids = published(store, tmp_path)
    for artifact in ids:
        tag(store, "math", artifact)

    def move(turn: int) -> int | None:
        try:
            return (tag(store, "math", ids[turn % 3]) if turn % 2 else rollback(store, "math")).number
        except (StoreError, ConfigError):  # another writer was first, or nothing is further back
            return None

    with ThreadPoolExecutor(8) as pool:
        reported = {number for number in pool.map(move, range(60)) if number}
    moves = history(store, "math")
    assert [move.number for move in moves] == list(range(1, len(moves) + 1))
    assert reported <= set(range(1, len(moves) + 1))
    assert {4, len(moves)} <= reported  # the moves that were written are those that were told of
    assert [move.id for move in moves[:3]] == ids


@settings(deadline=None)
@given(st.lists(st.integers(0, 8), max_size=12))
def test_history_only_grows_and_each_rollback_leads_to_a_move_in_it(steps: list[int]) -> None:
    store = Store(f"memory://{uuid.uuid4().hex}")
    with TemporaryDirectory() as scratch:
        ids = published(store, Path(scratch))
    tag(store, "math", ids[0])
    for step in steps:
        before = history(store, "math")
        if step < 3:
            expected = tag(store, "math", ids[step]).id
            assert expected == ids[step]
        elif step - 2 <= len(before):
            expected = rollback(store, "math", step - 2).id
            assert expected == before[step - 3].id
        else:
            continue
        after = history(store, "math")
        assert after[: len(before)] == before
        assert len(after) - len(before) == (before[-1].id != expected)
        assert get_ref(store, "math") == after[-1].id == expected


@pytest.mark.parametrize("last", [99_999_998, 99_999_999, 100_000_000, 999_999_999])
def test_names_move_on_whatever_their_number(last: int, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    ids = [store.publish(*sample(tmp_path / str(seed), seed=seed)).id for seed in range(2)]
    folder = Path(store.url) / "refs" / "a@b"
    folder.mkdir(parents=True)
    first = canonical_json({"id": ids[0], "moved": "2026-01-01T00:00:00+00:00", "by": "", "why": ""})
    (folder / f"{last:08d}.json").write_bytes(first)
    (folder / f"0{last + 5:08d}.json").write_bytes(b"another spelling of a number is none")
    for step in range(1, 4):
        made = set_ref(store, "a@b", ids[step % 2])
        assert made.number == last + step
        assert get_ref(store, "a@b") == all_refs(store)["a@b"] == made.id
    assert [move.number for move in history(store, "a@b")] == [last, last + 1, last + 2, last + 3]
    assert history(store, "a@b")[0].id == ids[0]
