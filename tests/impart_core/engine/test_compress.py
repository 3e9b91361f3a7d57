"""What a compression does about what it cannot do."""

import logging
from pathlib import Path
from typing import Any

import pytest

from impart_core.base.errors import StoreError
from impart_core.engine import compress
from impart_core.store.store import Store


def test_activations_that_cannot_be_deleted_are_told_of_and_end_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise StoreError("Deleting is not allowed here.")

    monkeypatch.setattr(compress, "discard", refuse)
    with caplog.at_level(logging.WARNING):
        compress.clean_up(Store(tmp_path), ["0" * 64])
    assert "1 activations are left in the store for impart gc: Deleting is not allowed here." in caplog.text
