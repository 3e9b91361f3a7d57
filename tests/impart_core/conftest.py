"""Stores to try the same promises on."""

import uuid
from pathlib import Path

import pytest

from impart_core.store.store import Store


@pytest.fixture(params=["folder", "memory", pytest.param("s3", marks=pytest.mark.e2e)])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store of each kind; that on S3 lies on a real server."""
    if request.param == "folder":
        return Store(tmp_path / "store")
    if request.param == "s3":
        for name, value in request.getfixturevalue("s3").items():
            monkeypatch.setenv(name, value)
        return Store(f"s3://impart/{uuid.uuid4().hex}")
    return Store(f"memory://{uuid.uuid4().hex}")
