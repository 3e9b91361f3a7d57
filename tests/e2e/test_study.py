"""A small study from end to end: what it counts is on disk, and nothing is made twice."""

import json
from pathlib import Path
from typing import Any

import pytest

from impart_core.artifacts.delta import DeltaContent
from impart_core.store.store import Store
from tests.bench.study.__main__ import main

pytestmark = pytest.mark.e2e


def study(tmp_path: Path, *more: str) -> dict[str, Any]:
    small = ["--items", "4", "--zoos", "first", "--jobs", "1"]
    main(["--store", str(tmp_path / "store"), "--out", str(tmp_path / "study.json"), *small, *more])
    return dict(json.loads((tmp_path / "study.json").read_text())["cells"])


def artifacts(tmp_path: Path) -> dict[Path, int]:
    """Return when each file of an artifact was written."""
    return {path: path.stat().st_mtime_ns for path in (tmp_path / "store" / "artifacts").rglob("*") if path.is_file()}


def test_a_study_counts_what_is_on_disk_and_makes_nothing_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = study(tmp_path, "--methods", "ecsq, all coded", "--ratios", "64")
    assert sorted(first) == [f"first/{task}/ecsq, all coded/64" for task in ("chat", "code", "math")]
    before = artifacts(tmp_path)

    opened = Store(str(tmp_path / "store"))
    folders = {path.parent.name for path in before}
    deltas = [one for one in map(opened.manifest, folders) if isinstance(one.content, DeltaContent)]
    on_disk = sorted(
        sum(path.stat().st_size for path in before if path.parent.name in {delta.id, *delta.parents})
        for delta in deltas
    )
    assert on_disk == sorted(figures["bytes"] for figures in first.values())
    for figures in first.values():
        assert figures["projection_bytes"] < figures["file_bytes"] < figures["bytes"]
        assert figures["tuned_loss"] < figures["answer_loss"][0] < figures["base_loss"]
        assert (figures["items"], figures["seeds"]) == (4, 1)

    again = study(tmp_path, "--methods", "ecsq, all coded", "impart", "--ratios", "64", "512", "--seeds", "2")
    after = artifacts(tmp_path)
    assert {path: after[path] for path in before} == before  # what was there was read, not written
    assert {key: again[key] for key in first} == first
    assert again["first/math/impart/64"]["seeds"] == 2
    assert again["first/math/impart/512"] is None  # the highest ratio of its smallest matrix is below
    told = capsys.readouterr().out
    assert "first/math/impart/512: not possible" in told
    assert "| ecsq, all coded |" in told
