"""The store: artifacts whole or absent, on a folder and on any other fsspec URL."""

from contextlib import suppress
from pathlib import Path

import fsspec
import pytest

from impart_core.base.errors import ArtifactNotFoundError, CorruptArtifactError, StoreError
from impart_core.base.files import sha256_of
from impart_core.store.manifest import Manifest
from impart_core.store.store import Store, default_store_url, file_entry
from tests.impart_core.store.samples import sample

DATA = {"data.bin": b"0123456789" * 100, "notes": b"abc"}


def published(store: Store, folder: Path, seed: int = 0) -> Manifest:
    return store.publish(*sample(folder, DATA, seed))


def put(store: Store, path: str, data: bytes | None) -> None:
    """Overwrite or remove one object behind the store's back."""
    fs, root = fsspec.core.url_to_fs(store.url)
    if data is None:
        fs.rm_file(f"{root}/{path}")
    else:
        fs.makedirs(f"{root}/{path}".rpartition("/")[0], exist_ok=True)
        fs.pipe_file(f"{root}/{path}", data)


def objects(store: Store) -> dict[str, bytes]:
    """Return every object of a store by its path."""
    fs, root = fsspec.core.url_to_fs(store.url)
    found = {}
    for path in fs.find(root) if fs.exists(root) else []:
        with suppress(FileNotFoundError):  # the S3 server goes on listing a folder that is empty again
            found[str(path).removeprefix(str(root)).lstrip("/")] = fs.cat_file(path)
    return found


def data_path(manifest: Manifest, name: str = "data.bin") -> str:
    return f"artifacts/{manifest.id}/{manifest.file(name).path}"


def test_a_published_artifact_is_its_files_and_its_manifest_and_nothing_else(store: Store, tmp_path: Path) -> None:
    manifest = published(store, tmp_path / "scratch")
    assert objects(store) == {
        data_path(manifest): DATA["data.bin"],
        data_path(manifest, "notes"): DATA["notes"],
        f"artifacts/{manifest.id}/manifest.json": manifest.to_json(),
    }
    assert store.ids() == [manifest.id]
    assert store.manifest(manifest.id) == store.lookup(manifest.id) == manifest


def test_files_come_back_bit_for_bit(store: Store, tmp_path: Path) -> None:
    manifest = published(store, tmp_path / "scratch")
    for name, data in DATA.items():
        with store.local_file(manifest, name) as path:
            assert path.read_bytes() == data
        store.verify_file(manifest, manifest.file(name))


def test_its_bytes_are_those_of_its_objects(store: Store, tmp_path: Path) -> None:
    manifest = published(store, tmp_path / "scratch")
    assert manifest.nbytes == sum(len(data) for data in objects(store).values())


def test_a_failure_while_publishing_leaves_no_artifact(store: Store, tmp_path: Path) -> None:
    manifest, files = sample(tmp_path / "scratch", DATA)
    files["notes"].unlink()
    with pytest.raises((OSError, StoreError)):
        store.publish(manifest, files)
    assert store.lookup(manifest.id) is None
    assert store.ids() == []
    with pytest.raises(ArtifactNotFoundError):
        store.manifest(manifest.id)


def test_what_a_failure_left_behind_does_not_hinder_the_next_attempt(store: Store, tmp_path: Path) -> None:
    manifest, files = sample(tmp_path / "scratch", DATA)
    put(store, data_path(manifest), b"half")
    assert store.publish(manifest, files) == manifest
    store.verify_file(manifest, manifest.file("data.bin"))


def test_the_first_whole_artifact_stays_in_force(store: Store, tmp_path: Path) -> None:
    first = published(store, tmp_path / "one")
    before = objects(store)
    later, files = sample(tmp_path / "two", {"data.bin": b"made otherwise"})
    assert later.id == first.id
    assert store.publish(later, files) == first
    assert objects(store) == before


@pytest.mark.parametrize("damage", [b"", b"0123456789" * 99, b"0123456789" * 100 + b"!", None])
def test_a_file_of_another_size_is_no_whole_artifact_and_publishing_again_repairs_it(
    damage: bytes | None, store: Store, tmp_path: Path
) -> None:
    manifest = published(store, tmp_path / "one")
    before = objects(store)
    put(store, data_path(manifest), damage)
    assert store.lookup(manifest.id) is None
    with pytest.raises(CorruptArtifactError, match="data"), store.local_file(manifest, "data.bin"):
        pass
    assert published(store, tmp_path / "two") == manifest
    assert objects(store) == before


def test_damage_that_keeps_the_size_is_seen_by_reading_and_repaired_when_asked_for(
    store: Store, tmp_path: Path
) -> None:
    manifest = published(store, tmp_path / "one")
    before = objects(store)
    assert store.lookup(manifest.id, reread=True) == manifest
    put(store, data_path(manifest), b"0123456789" * 99 + b"012345678!")
    assert store.lookup(manifest.id) == manifest
    assert store.lookup(manifest.id, reread=True) is None
    with pytest.raises(CorruptArtifactError, match="SHA-256"), store.local_file(manifest, "data.bin", verified=True):
        pass
    files = sample(tmp_path / "two", DATA)
    assert store.publish(*files) == manifest
    assert objects(store) != before
    assert store.publish(*files, reread=True).files == manifest.files
    assert objects(store) == before


def test_such_a_repair_with_other_content_replaces_the_manifest_and_what_is_whole_stays(
    store: Store, tmp_path: Path
) -> None:
    manifest = published(store, tmp_path / "one")
    other, files = sample(tmp_path / "two", {"data.bin": b"made otherwise"})
    assert store.publish(other, files, reread=True) == manifest
    put(store, data_path(manifest, "notes"), b"abd")
    assert store.publish(other, files, reread=True) == other
    assert store.lookup(manifest.id, reread=True) == other


def test_a_repair_with_other_content_replaces_the_manifest(store: Store, tmp_path: Path) -> None:
    manifest = published(store, tmp_path / "one")
    put(store, data_path(manifest), b"")
    other, files = sample(tmp_path / "two", {"data.bin": b"made otherwise"})
    assert store.publish(other, files) == other
    assert store.lookup(manifest.id) == other


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff"])
def test_a_damaged_manifest_is_refused_and_publishing_again_repairs_it(
    damage: bytes, store: Store, tmp_path: Path
) -> None:
    manifest, files = sample(tmp_path / "one", DATA)
    store.publish(manifest, files)
    put(store, f"artifacts/{manifest.id}/manifest.json", damage)
    assert store.lookup(manifest.id) is None
    with pytest.raises(CorruptArtifactError, match=r"not a valid manifest|is empty"):
        store.manifest(manifest.id)
    assert store.publish(manifest, files) == manifest
    assert store.lookup(manifest.id) == manifest


def test_another_artifacts_manifest_is_not_taken_for_its_own(store: Store, tmp_path: Path) -> None:
    one, two = published(store, tmp_path / "one"), published(store, tmp_path / "two", seed=1)
    put(store, f"artifacts/{one.id}/manifest.json", two.to_json())
    with pytest.raises(CorruptArtifactError, match="manifest of another artifact"):
        store.manifest(one.id)
    assert store.lookup(one.id) is None


def test_a_changed_byte_in_a_file_is_found_by_its_digest_and_named(store: Store, tmp_path: Path) -> None:
    manifest = published(store, tmp_path / "one")
    put(store, data_path(manifest), b"1" + DATA["data.bin"][1:])
    with pytest.raises(CorruptArtifactError, match=f"{manifest.file('data.bin').path} does not have the SHA-256"):
        store.verify_file(manifest, manifest.file("data.bin"))
    store.verify_file(manifest, manifest.file("notes"))


def test_an_object_is_created_once(store: Store) -> None:
    assert store.objects.create("refs/name/1.json", b"first")
    assert not store.objects.create("refs/name/1.json", b"second")
    assert store.read("refs/name/1.json") == b"first"
    assert objects(store) == {"refs/name/1.json": b"first"}


def test_absent_things_are_none_and_an_absent_store_is_empty(store: Store) -> None:
    assert store.read("refs/name/1.json") is None
    assert store.objects.names("refs") == store.ids() == []
    assert store.lookup("0" * 64) is None
    with pytest.raises(ArtifactNotFoundError, match="no artifact 000000000000"):
        store.manifest("0" * 64)


def test_a_probe_leaves_nothing_behind(store: Store) -> None:
    store.require_writable()
    assert objects(store) == {}


def test_leftovers_beside_artifacts_are_not_artifacts(store: Store, tmp_path: Path) -> None:
    manifest = published(store, tmp_path / "one")
    put(store, f"artifacts/{'0' * 64}/data.bin", b"no manifest")
    assert store.ids() == [manifest.id]


def test_a_name_is_stored_with_its_contents_digest_before_its_suffix(tmp_path: Path) -> None:
    for name, stored in (("a.tar.gz", "a.tar.{}.gz"), ("plain", "plain.{}")):
        (tmp_path / name).write_bytes(b"abc")
        entry = file_entry(name, tmp_path / name)
        assert entry.path == stored.format("ba7816bf8f01cfea")
        assert (entry.size, entry.sha256) == (3, sha256_of(tmp_path / name))
        assert entry.sha256.startswith("ba7816bf8f01cfea")  # SHA-256 of "abc", FIPS 180-2


def test_an_unknown_protocol_is_a_sentence() -> None:
    with pytest.raises(StoreError, match="'nosuch://x' cannot be opened"):
        Store("nosuch://x")


def test_a_store_that_is_a_file_or_lies_below_one_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for url in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError):
            Store(url).require_writable()
        assert Store(url).lookup("0" * 64) is None


def test_the_store_is_the_one_that_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPART_STORE", "memory://chosen")
    assert default_store_url() == Store().url == "memory://chosen"
    assert not Store().objects.is_local
    monkeypatch.delenv("IMPART_STORE")
    assert Path(default_store_url()).parts[-2:] == ("impart", "store")
