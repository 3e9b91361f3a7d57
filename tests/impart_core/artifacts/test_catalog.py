"""What a store holds, as a list for people."""

from pathlib import Path

import pytest

from impart_core.artifacts.catalog import list_entries
from impart_core.artifacts.delta import Delta
from impart_core.artifacts.refs import set_ref
from impart_core.artifacts.store import Store
from tests.impart_core.pipeline import compress, config_of, flip

Pair = tuple[Path, Path]


@pytest.fixture
def delta(pair: Pair, tmp_path: Path) -> Delta:
    return compress(Store(tmp_path / "store"), *pair, config_of(4, seed=7))


def test_an_empty_store_lists_nothing(tmp_path: Path) -> None:
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
