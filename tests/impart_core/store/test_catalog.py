"""What a store holds, as a list for people."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from impart_core.artifacts.delta import Delta
from impart_core.base.errors import StoreDeniedError
from impart_core.store.catalog import entry_of, forget, list_entries, note, scan
from impart_core.store.manifest import Manifest
from impart_core.store.names import set_ref
from impart_core.store.store import Store
from tests.impart_core.pipeline import compress, config_of, flip
from tests.impart_core.store.samples import sample

Pair = tuple[Path, Path]


@pytest.fixture
def delta(pair: Pair, tmp_path: Path) -> Delta:
    return compress(Store(tmp_path / "store"), *pair, config_of(4, seed=7))


def test_an_empty_store_lists_nothing(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    assert list_entries(Store(tmp_path / "store")) == []


def test_a_delta_is_listed_with_names_settings_and_all_bytes_of_it_and_its_blocks(delta: Delta) -> None:
    for name in ("math@prod", "best"):
        set_ref(delta.store, name, delta.manifest.id)
    (entry,) = list_entries(delta.store)
    assert (entry.id, entry.kind, set(entry.names)) == (delta.manifest.id, "delta", {"math@prod", "best"})
    assert entry.summary == "impart at CR 4, seed 7"
    artifacts = Path(delta.store.url) / "artifacts"
    assert entry.bytes == sum(path.stat().st_size for path in artifacts.rglob("*") if path.is_file())


def test_a_damaged_artifact_is_listed_as_damaged_and_hides_no_other(pair: Pair, delta: Delta) -> None:
    other = compress(delta.store, *pair, config_of(5))
    flip(Path(delta.store.url) / "artifacts" / delta.manifest.id / "manifest.json", 50)
    kinds = {entry.id: entry.kind for entry in list_entries(delta.store)}
    assert kinds == {delta.manifest.id: "damaged", other.manifest.id: "delta"}


def make(store: Store, folder: Path, *seeds: int) -> list[Manifest]:
    return [store.publish(*sample(folder / str(seed), {"data.bin": b"x"}, seed)) for seed in seeds]


def packs(store: Store) -> list[str]:
    return store.objects.names("catalog")


class Counted(Store):
    """A store that counts the manifests that are read one by one."""

    read_manifests = 0

    def manifests(self, artifact_ids: Iterable[str]) -> Iterator[tuple[str, Manifest | None]]:
        for found in super().manifests(artifact_ids):
            self.read_manifests += 1
            yield found


@pytest.fixture
def store(tmp_path: Path) -> Counted:
    return Counted(tmp_path / "store")


def test_what_is_noted_is_listed_without_its_manifest(store: Counted, tmp_path: Path) -> None:
    made = make(store, tmp_path, 0, 1, 2)
    note(store, map(entry_of, made[:2]))
    assert scan(store) == {manifest.id: entry_of(manifest) for manifest in made}
    assert store.read_manifests == 1


def test_many_that_nobody_noted_are_noted_by_whoever_lists_them(store: Counted, tmp_path: Path) -> None:
    made = make(store, tmp_path, *range(40))
    assert len(scan(store)) == store.read_manifests == 40
    assert len(scan(store)) == store.read_manifests == 40
    assert packs(store)[0].startswith(f"{len(made):08d}-")


def test_what_cannot_be_noted_is_listed_all_the_same(
    store: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(store, tmp_path, *range(40))

    def refuse(path: str, data: bytes) -> bool:
        raise StoreDeniedError("read only")

    monkeypatch.setattr(store.objects, "create", refuse)
    assert len(scan(store)) == 40
    assert packs(store) == []


def test_many_small_packs_become_one(store: Counted, tmp_path: Path) -> None:
    made = make(store, tmp_path, *range(34))
    for manifest in made:
        note(store, [entry_of(manifest)])
    assert len(packs(store)) <= 2
    assert scan(store) == {manifest.id: entry_of(manifest) for manifest in sorted(made, key=lambda made: made.id)}
    assert store.read_manifests == 0


def test_what_is_gone_is_not_listed_and_can_be_forgotten(store: Counted, tmp_path: Path) -> None:
    one, two = make(store, tmp_path, 0, 1)
    note(store, map(entry_of, (one, two)))
    forget(store, [one.id])
    (name,) = packs(store)
    assert one.id not in (store.read(f"catalog/{name}") or b"").decode()
    store.objects.delete(store.objects.find(f"artifacts/{two.id}"))
    assert set(scan(store)) == {one.id}


@pytest.mark.parametrize("damage", [b"", b"[]", b"{", b"[1]", b"\xff" * 100])
def test_a_damaged_pack_costs_time_and_nothing_else(damage: bytes, store: Counted, tmp_path: Path) -> None:
    made = make(store, tmp_path, 0, 1)
    note(store, map(entry_of, made))
    (name,) = packs(store)
    (Path(store.url) / "catalog" / name).write_bytes(damage)
    assert scan(store) == {manifest.id: entry_of(manifest) for manifest in sorted(made, key=lambda made: made.id)}
    assert store.read_manifests == 2


def test_of_several_entries_of_one_artifact_the_latest_holds(store: Counted, tmp_path: Path) -> None:
    (made,) = make(store, tmp_path, 0)
    entry = entry_of(made)
    note(store, [entry.model_copy(update={"started": "2999", "summary": "repaired"})])
    note(store, [entry])
    assert scan(store)[made.id].summary == "repaired"
