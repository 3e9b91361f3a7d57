"""Named objects: the same promises in a folder, in memory and on a real S3 server."""

import os
import threading
import tracemalloc
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from impart_core.base.errors import ConfigError, StoreDeniedError, StoreError, StoreFullError, StoreUnreachableError
from impart_core.base.files import sha256_of
from impart_core.storage import s3
from impart_core.storage.failures import Side, explained
from impart_core.storage.objects import Objects, require_path
from impart_core.storage.s3 import _PART_BYTES, S3Objects
from impart_core.store.store import Store

LIMIT = 1 << 20


@pytest.fixture
def objects(store: Store) -> Objects:
    return store.objects


def file_of(folder: Path, data: bytes) -> tuple[Path, str]:
    path = folder / uuid.uuid4().hex
    path.write_bytes(data)
    return path, sha256_of(path)


@pytest.mark.parametrize("data", [b"", b"x", b"0123456789" * 1000])
def test_a_file_comes_back_bit_for_bit(data: bytes, objects: Objects, tmp_path: Path) -> None:
    objects.put("a/b.bin", *file_of(tmp_path, data))
    assert objects.size("a/b.bin") == len(data)
    assert objects.read("a/b.bin", LIMIT) == data
    assert objects.read("a/b.bin", 3) == data[:3]
    assert objects.fetch("a/b.bin", tmp_path / "out") == sha256_of(tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == data
    local = objects.local("a/b.bin")
    assert (local is not None) == objects.is_local
    assert local is None or local.read_bytes() == data


def test_what_is_absent_is_none_or_empty(objects: Objects, tmp_path: Path) -> None:
    assert objects.read("a/b", LIMIT) is objects.size("a/b") is None
    assert objects.read_many(["a/b", "a/c"], LIMIT) == {}
    assert objects.names("a") == []
    assert objects.find("a") == {}
    objects.delete(["a/b", "a/c"])
    assert objects.fetch("a/b", tmp_path / "out") is None


def test_a_name_is_taken_once_by_whoever_is_first(objects: Objects) -> None:
    assert objects.create("a/1", b"first")
    assert not objects.create("a/1", b"second")
    assert objects.read("a/1", LIMIT) == b"first"


def test_of_many_that_create_at_once_one_wins(objects: Objects) -> None:
    if not objects.is_local and not isinstance(objects, S3Objects):
        pytest.skip("memory is for one thread")
    barrier = threading.Barrier(8)

    def create(number: int) -> bool:
        barrier.wait()
        return objects.create("a/1", str(number).encode())

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(create, range(8)))
    assert sum(won) == 1
    assert objects.read("a/1", LIMIT) == str(won.index(True)).encode()


def test_what_somebody_else_wrote_since_is_not_overwritten_where_the_store_can_tell(objects: Objects) -> None:
    objects.create("a/1", b"old")
    assert objects.replace("a/1", b"new", b"old")
    assert objects.read("a/1", LIMIT) == b"new"
    written = objects.replace("a/1", b"lost", b"old")
    assert written != isinstance(objects, S3Objects)
    assert objects.read("a/1", LIMIT) == (b"lost" if written else b"new")
    assert objects.replace("a/2", b"first", None)


def test_a_listing_of_several_pages_is_whole(objects: Objects) -> None:
    if not isinstance(objects, S3Objects):
        pytest.skip("other places have no pages")
    paths = {f"a/{number}/x" for number in range(1001)}  # one more than a page of S3 holds
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda path: objects.create(path, b"x"), paths))
    assert objects.create("ab/1", b"next to it")
    assert set(objects.find("a")) == paths
    assert len(objects.names("a")) == len(paths)


@pytest.mark.parametrize("page", [1, 2, 7, 50])
def test_stretches_of_a_listing_side_by_side_leave_nothing_out(
    page: int, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not isinstance(objects, S3Objects):
        pytest.skip("other places have no pages")
    monkeypatch.setattr(s3, "_PAGE", page)
    names = ["2", "3", "30", "4x", "44", "a/1", "c", "e", "f", "g", "-", "Z", "_"]
    paths = {f"a/{name}/x" for name in names} | {"a/2x", "a/4", "a/e", "a/8"}
    assert all(objects.create(path, b"x") for path in sorted(paths))
    assert set(objects.find("a")) == paths
    objects.delete(["a/f/x", "a/g/x", "a/Z/x"])
    assert set(objects.find("a")) == paths - {"a/f/x", "a/g/x", "a/Z/x"}


def test_listings_are_of_now(objects: Objects) -> None:
    before = objects.now()
    for path in ("a/x/1", "a/x/2", "a/y", "b/z"):
        assert objects.create(path, path.encode())
    assert objects.names("a") == ["x", "y"]
    found = objects.find("a")
    assert {path: info.size for path, info in found.items()} == {"a/x/1": 5, "a/x/2": 5, "a/y": 3}
    slack = timedelta(seconds=2)  # S3 tells whole seconds
    assert all(before - slack <= info.modified <= objects.now() + slack for info in found.values())
    objects.delete(["a/x/1", "a/x/2"])
    assert set(objects.find("a")) == {"a/y"}
    assert objects.read_many(["a/x/1", "a/y", "b/z"], 2) == {"a/y": b"a/", "b/z": b"b/"}


@pytest.mark.parametrize(
    "path",
    [
        "..",
        "a/../b",
        "/a",
        "a//b",
        "a/",
        ".",
        "a/./b",
        "a\\b",
        "a/%2e%2e/b",
        "a\0b",
        "",
        "a b",
        "ä",
        "x" * 256,
        "a/....",
    ],
)
def test_no_path_leaves_the_prefix(path: str, objects: Objects, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no path inside a store"):
        require_path(path)
    for use in (
        lambda: objects.put(path, *file_of(tmp_path, b"x")),
        lambda: objects.create(path, b"x"),
        lambda: objects.replace(path, b"x", None),
        lambda: objects.read(path, LIMIT),
        lambda: objects.size(path),
        lambda: objects.delete([path]),
    ):
        with pytest.raises(StoreError, match="no path inside a store"):
            use()


def test_a_file_that_changes_while_it_is_stored_is_noticed(objects: Objects, tmp_path: Path) -> None:
    if not objects.is_local and not isinstance(objects, S3Objects):
        pytest.skip("memory checks nothing")
    path, digest = file_of(tmp_path, b"before")
    path.write_bytes(b"after!")
    with pytest.raises(StoreError):
        objects.put("a/b", path, digest)
    assert objects.size("a/b") is None


@pytest.mark.e2e
@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_a_large_file_goes_up_and_comes_down_in_parts(
    objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = 5 << 20  # the smallest that S3 allows
    monkeypatch.setattr("impart_core.storage.s3._PART_BYTES", part)
    path, digest = file_of(tmp_path, os.urandom(8 * part + 17))
    tracemalloc.start()
    objects.put("a/large", path, digest)
    assert objects.fetch("a/large", tmp_path / "out") == digest
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sha256_of(tmp_path / "out") == digest
    assert objects.size("a/large") == path.stat().st_size
    assert peak < 4 * part
    assert not objects.unfinished()


@pytest.mark.e2e
@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_an_upload_that_fails_is_aborted(objects: Objects, tmp_path: Path) -> None:
    path, digest = file_of(tmp_path, os.urandom(2 * _PART_BYTES + 1))

    class Stop(BaseException):
        pass

    assert isinstance(objects, S3Objects)
    put_part = objects._put_part

    def fail(named: dict[str, str], number: int, part: bytes) -> dict[str, object]:
        if number == 2:
            assert objects.unfinished()
            raise Stop
        return put_part(named, number, part)

    objects._put_part = fail  # type: ignore[method-assign,assignment]
    with pytest.raises(Stop):
        objects.put("a/large", path, digest)
    assert not objects.unfinished()
    assert objects.size("a/large") is None


@pytest.mark.e2e
@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_what_a_killed_upload_left_is_listed_and_can_be_aborted(objects: Objects) -> None:
    assert isinstance(objects, S3Objects)
    where = objects._where("a/large")
    objects._fs.call_s3("create_multipart_upload", **where)
    (name,) = objects.unfinished()
    objects.abort([name])
    objects.abort([name])
    assert not objects.unfinished()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionResetError("gone"), StoreUnreachableError),
        (TimeoutError("late"), StoreUnreachableError),
        (PermissionError("no"), StoreDeniedError),
        (OSError(28, "No space left on device"), StoreFullError),
        (ValueError("odd"), StoreError),
    ],
)
def test_failures_are_sentences_of_their_kind(error: Exception, kind: type[StoreError]) -> None:
    with pytest.raises(StoreError, match="s3://a/b") as caught, explained(Side.STORE, "s3://a/b"):
        raise error
    assert type(caught.value) is kind
    assert isinstance(caught.value, ConnectionError) == (kind is StoreUnreachableError)


def test_a_sentence_of_ours_passes() -> None:
    with pytest.raises(ConfigError, match=r"^ours$"), explained(Side.STORE, "s3://a/b"):
        raise ConfigError("ours")
