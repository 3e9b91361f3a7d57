"""`impart merge` through the command line, with Prefect: what it checks, makes, prints, and puts on the run's page."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from impart_core import tinyzoo
from impart_core.checkpoint.index import open_checkpoint
from tests.e2e.here import impart, printed, told
from tests.e2e.test_run_page import pages
from tests.support import manifests

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("prefect_api")]
BASE, MATH, CODE = (str(tinyzoo.path(name)) for name in ("base", "math", "code"))
FILE: dict[str, Any] = {
    "merge_method": "task_arithmetic",
    "base_model": BASE,
    "models": [{"model": MATH}, {"model": CODE, "parameters": {"weight": [0.2, 0.8]}}],
    "parameters": {"weight": 0.5},
    "impart": {"sparsify": {"method": "magnitude", "cr": 8}, "name": "Both@ta"},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "merge.yaml"
    path.write_text(yaml.safe_dump(FILE))
    return path


def test_a_dry_run_says_what_would_be_done_and_does_nothing(file: Path, tmp_path: Path) -> None:
    command = ["merge", str(file), "--out", str(tmp_path / "out"), "--store", str(tmp_path / "store"), "--dry-run"]
    text = printed(*command)
    assert "0.2 to 0.8" in text and "magnitude at CR 8" in text
    plan = told(*command)
    assert (plan["tensors"], plan["copied"]) == (len(open_checkpoint(BASE).tensors), 0)
    assert not (tmp_path / "out").exists()
    assert not manifests(tmp_path / "store")


def test_a_merge_is_made_told_and_put_on_the_runs_page(file: Path, tmp_path: Path) -> None:
    place = ["--store", str(tmp_path / "store")]
    report = told("merge", str(file), "--out", str(tmp_path / "out"), *place)
    assert [made["cached_blocks"] for made in report["sparsified"]] == [0, 0]
    assert open_checkpoint(tmp_path / "out").tensors.keys() == open_checkpoint(BASE).tensors.keys()
    listed = printed("ls", *place)
    assert "Both@ta" in listed and "task_arithmetic of 3 models" in listed
    assert report["artifact"][:12] in printed("inspect", "Both@ta", *place)
    assert impart("verify", "--all", *place)[0] == 0
    (page,) = pages("merge-both-ta")
    assert report["artifact"] in page["data"] and MATH in page["data"]
    again = told("merge", str(file), "--out", str(tmp_path / "out"), "--overwrite", *place)
    assert again["artifact"] == report["artifact"]
    assert all(made["cached_blocks"] == made["blocks"] for made in again["sparsified"])


@pytest.mark.parametrize(
    ("change", "words", "said"),
    [
        ({"base_modle": "x"}, [], "base_model"),
        ({"merge_method": "task_arithmetics"}, [], "Did you mean 'task_arithmetic'"),
        ({}, ["--dry-rnu"], "--dry-run"),
        ({"impart": {"sparsify": {"method": "impart", "cr": 1e9}}}, [], "too high"),
        ({"base_model": CODE, "models": [{"model": "nothing-like-it"}]}, [], "nothing-like-it"),
    ],
)
def test_mistakes_end_with_2_and_a_sentence(
    change: dict[str, Any], words: list[str], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "merge.yaml"
    path.write_text(json.dumps({**FILE, **change}))
    place = ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]
    code, out, err = impart("merge", str(path), *place, *words)
    assert (code, out) == (2, "")
    assert said in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    code, _, err = impart("merge", str(tmp_path), "--out", str(tmp_path / "out"))
    assert code == 2 and "cannot be read" in err
