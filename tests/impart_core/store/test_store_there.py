"""A mistyped store: whatever only reads says that nothing lies there, and makes nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest

from impart_core.base.errors import ArtifactNotFoundError
from impart_core.store.catalog import list_entries
from impart_core.store.gc import collect
from impart_core.store.names import history, resolve, rollback
from impart_core.store.store import Store, absolute_store
from impart_core.store.verify import verify_store
from tests.impart_core.store.samples import NO_GRACE

READING: dict[str, Callable[[Store], object]] = {
    "list": list_entries,
    "verify": verify_store,
    "collect": lambda store: collect(store, NO_GRACE),
    "resolve a name": lambda store: resolve(store, "math@prod"),
    "resolve an id": lambda store: resolve(store, "0" * 64),
    "history": lambda store: history(store, "math@prod"),
    "rollback": lambda store: rollback(store, "math@prod"),
}


@pytest.mark.parametrize("read", READING.values(), ids=READING)
def test_a_place_with_nothing_in_it_is_no_empty_store(read: Callable[[Store], object], store: Store) -> None:
    with pytest.raises(
        ArtifactNotFoundError, match=rf"There is no store at {store.url}: .*Check --store and IMPART_ST"
    ):
        read(store)
    assert not store.objects.exists()


@pytest.mark.parametrize("read", READING.values(), ids=READING)
def test_a_store_that_holds_anything_is_not_doubted(read: Callable[[Store], object], store: Store) -> None:
    store.objects.replace("probes/one", b"", None)
    try:
        read(store)
    except ArtifactNotFoundError as error:
        assert "no store" not in str(error)


def test_a_stores_folder_is_a_whole_path_though_it_has_the_form_of_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_store("team/store") == str(tmp_path / "team" / "store")
    assert absolute_store("s3://team/store") == "s3://team/store"
