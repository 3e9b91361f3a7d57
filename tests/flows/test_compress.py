"""What the flow hands to its tasks."""

from pathlib import Path

import pytest

from flows.compress import absolute


def test_a_folder_is_made_absolute_and_a_url_or_hub_id_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert absolute("org/name") == str(tmp_path / "org" / "name")
    assert absolute("base") == str(tmp_path / "base")
    assert absolute("~/base") == "/home/someone/base"
    for location in ("org/other", "org/other@v1", "hf://org/name@v1", "s3://bucket/base", "file:///base"):
        assert absolute(location) == location
