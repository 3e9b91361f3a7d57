"""How checkpoints and artifacts are named in OpenLineage events, and which events follow from what a run made."""

from pathlib import Path
from uuid import uuid4

import pytest

from impart_core.base.errors import ConfigError
from impart_core.lineage.events import (
    Dataset,
    artifact_dataset,
    checkpoint_dataset,
    end_of,
    events_of,
)
from impart_core.store.catalog import CatalogEntry

COMMIT = "1" * 40


@pytest.mark.parametrize(
    ("location", "namespace", "name"),
    [
        ("/models/a b", "file", "/models/a b"),
        ("file:///models/base", "file", "/models/base"),
        ("s3://bucket/models/base/", "s3://bucket", "models/base"),
        ("s3://bucket", "s3://bucket", "/"),
        ("s3://bucket/a#b", "s3://bucket", "a#b"),
        ("gs://bucket/base", "gs://bucket", "base"),
        ("abfss://container@account.dfs.core.windows.net/a", "abfss://container@account.dfs.core.windows.net", "a"),
        ("simplecache::s3://bucket/base", "s3://bucket", "base"),
        (f"hf://org/name@{COMMIT}", "hf://org", f"name@{COMMIT}"),
        ("org/name@v1", "hf://org", "name@v1"),
        ("https://user:p@ss@host:8080/base?token=x", "https://host:8080", "base"),
    ],
)
def test_a_checkpoint_is_named_by_where_it_lies(location: str, namespace: str, name: str) -> None:
    assert checkpoint_dataset(location) == Dataset(namespace, name)


def test_an_artifact_is_named_by_its_store_and_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for store in (str(tmp_path / "store"), "store", f"file://{tmp_path}/store"):
        assert artifact_dataset(store, "ab", "delta").namespace == f"file://{tmp_path}/store"
    assert artifact_dataset("s3://bucket/store/", "ab", "delta") == Dataset(
        "s3://bucket/store", "artifacts/ab", kind="delta"
    )


def test_an_artifact_starts_and_ends_once_from_its_parents_and_the_checkpoints() -> None:
    flow = (uuid4(), "compress")
    entries = [
        CatalogEntry(id="ff", kind="factors", bytes=5, started="2026-01-01T00:00:00+00:00"),
        CatalogEntry(id="bb", kind="block", bytes=7, parents=("ff",), started="2026-01-01T00:00:01+00:00"),
    ]
    events = events_of(entries, ["/m/b", "/m/f"], "s3://b/s", flow, ["bb"])
    assert [(event.type, event.job) for event in events] == [
        ("START", "factors"),
        ("COMPLETE", "factors"),
        ("START", "block"),
        ("COMPLETE", "block"),
    ]
    assert len({event.run for event in events}) == 2
    assert all(event.parent == flow for event in events)
    models = (Dataset("file", "/m/b"), Dataset("file", "/m/f"))
    assert events[1].inputs == models
    assert events[1].outputs == (Dataset("s3://b/s", "artifacts/ff", "factors", 5, True),)
    assert events[3].inputs == (*models, Dataset("s3://b/s", "artifacts/ff", "factors"))
    assert events[3].outputs == (Dataset("s3://b/s", "artifacts/bb", "block", 7, False),)
    assert events[0].time < events[2].time
    again = events_of(entries, [], "s3://b/s", flow, [])
    assert [event.run for event in again] == [event.run for event in events]


def test_an_end_by_an_error_is_told_without_secrets() -> None:
    assert end_of(ConfigError("ftp://me:secret@host/a is wrong")) == ("FAIL", "ConfigError: ftp://host/a is wrong")
    assert end_of(KeyboardInterrupt()) == ("ABORT", "KeyboardInterrupt: ")
    assert len(end_of(ConfigError("x" * 10**6))[1]) == 2000
