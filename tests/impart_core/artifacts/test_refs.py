"""Names for artifacts: moved atomically, their history kept, nothing outside the store."""

import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from impart_core.artifacts.refs import all_refs, get_ref, require_ref_name, resolve, set_ref
from impart_core.artifacts.store import Store
from impart_core.errors import ArtifactNotFoundError, ConfigError, CorruptArtifactError, UnknownNameError
from tests.impart_core.artifacts.samples import sample

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
    assert store.names_under("refs/math") == ["00000001.json", "00000002.json", "00000003.json"]
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
        store.create(f"artifacts/{artifact_id}/manifest.json", b"{}")
    with pytest.raises(ConfigError, match=r"beginning of 2 artifact ids. Give more digits"):
        resolve(store, "abcdef")
    assert resolve(store, "abcdef1") == ids[1]


def test_a_beginning_of_fewer_than_six_digits_is_no_id(store: Store, tmp_path: Path) -> None:
    manifest = store.publish(*sample(tmp_path / "scratch"))
    with pytest.raises(ArtifactNotFoundError):
        resolve(store, manifest.id[:5])


def test_an_unknown_name_is_answered_with_the_nearest(store: Store) -> None:
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
    assert store.names_under("refs") == []


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
    store.create("refs/math/00000002.json", damage)
    with pytest.raises(CorruptArtifactError, match=r"00000002.json is not a ref. Delete it to fall back one move"):
        get_ref(store, "math")


def test_stray_files_beside_a_refs_moves_are_ignored(store: Store) -> None:
    set_ref(store, "math", ONE)
    store.create("refs/math/notes.txt", b"x")
    assert get_ref(store, "math") == ONE
