"""`impart search`: a file is tried, the winner published, and what was found shown as text and as pictures."""

import functools
import re
from json import loads
from pathlib import Path

import pytest

from impart_core import tinyzoo
from tests.e2e.here import impart, printed, told
from tests.impart_core.evaluation.own_tasks import SUMS, sums, write_task
from tests.support import Environment, run_impart, run_json

pytestmark = pytest.mark.e2e

FILE = """
name: math@best
compress:
  base: BASE
  finetuned: MATH
  cr: 16
  method: {choose: [impart, lowrank]}
tasks: {TASK: answer_loss}
objectives: [mean, bytes]
sampler: grid
parallel: 2
items: 6
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search on a task with few items in each split."""
    folder = tmp_path_factory.mktemp("search")
    write_task(folder, {"validation": sums(range(10, 18)), "test": sums(range(30, 38))}, **SUMS)
    places = {"BASE": tinyzoo.path("base"), "MATH": tinyzoo.path("math"), "TASK": folder / "my_sums.yaml"}
    path = folder / "search.yaml"
    path.write_text(functools.reduce(lambda text, name: text.replace(name, str(places[name])), places, FILE))
    return path


@pytest.fixture(scope="module")
def store(file: Path, environment: Environment) -> Path:
    """A store in which the search was run as a flow."""
    place = file.parent / "store"
    report = run_json("search", str(file), "--store", str(place), environment=environment)
    assert (report["name"], report["study_name"], report["cached"]) == ("math@best", "math.study@best", False)
    return place


def test_a_dry_run_says_what_would_be_tried_and_makes_nothing(file: Path, tmp_path: Path) -> None:
    plan = told("search", "--dry-run", str(file), "--store", str(tmp_path / "store"))
    assert (plan["candidates"], plan["items"], plan["test_items"]) == (2, [6], {"my_sums": 8})
    assert plan["objectives"] == {"mean": "minimize", "bytes": "minimize"}
    assert not list((tmp_path / "store").glob("artifacts/*"))
    shown = printed("search", str(file), "--dry-run", "--store", str(tmp_path / "store"))
    assert "impart, lowrank" in shown


def test_what_was_found_is_shown(store: Path) -> None:
    shown = printed("search", "show", "math.study@best", "--store", str(store))
    record = told("search", "show", "math.study@best", "--store", str(store))
    best = record["study"]["best"]
    for word in (f"{best} (best)", "winner", "default", "base", "on the test split", "every candidate was tried"):
        assert word in shown
    assert [trial["values"]["method"] for trial in record["study"]["trials"]] == ["impart", "lowrank"]
    listed = {entry["kind"] for entry in told("ls", "--store", str(store))["artifacts"]}
    assert listed == {"delta", "study"}


def test_a_search_without_a_winner_says_why_and_does_not_pass_for_one(
    file: Path, store: Path, environment: Environment
) -> None:
    bound = file.with_name("bound.yaml")
    bound.write_text(file.read_text().replace("math@best", "math@none") + "constraints: [mean <= 1e-9]\n")
    done = run_impart("search", str(bound), "--store", str(store), "--json", environment=environment)
    assert done.returncode == 2
    assert "There is no winner, and nothing is published as math@none" in done.stderr
    assert re.search(r"none of 2 complete trials keeps mean <= 1e-09 \(nearest: [0-9.e-]+, trial [01]\)", done.stderr)
    study = loads(done.stdout)["record"]["study"]
    assert (len(study["trials"]), study["best"]) == (2, None)
    names = {name for entry in told("ls", "--store", str(store))["artifacts"] for name in entry["names"]}
    assert "math.study@none" in names and "math@none" not in names
    shown = printed("search", "show", "math.study@none", "--store", str(store))
    assert "best           none: none of 2 complete trials keeps mean <= 1e-09" in shown


@pytest.mark.parametrize(("suffix", "begins"), [("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_the_picture_is_drawn_the_same_each_time(store: Path, tmp_path: Path, suffix: str, begins: bytes) -> None:
    pictures = [tmp_path / f"{number}.{suffix}" for number in range(2)]
    for picture in pictures:
        printed("search", "show", "math.study@best", "--store", str(store), "--out", str(picture))
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    assert pictures[0].read_bytes().startswith(begins)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["nothing.yaml"], "cannot be read"),
        (["show", "math.study@best", "--out", "picture.gif"], "ends in .svg or .png"),
        (["show", "math@best"], "is of kind delta, no study"),
        (["show", "maths"], "math"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(store: Path, arguments: list[str], why: str) -> None:
    code, out, err = impart("search", *arguments, "--store", str(store))
    assert (code, out) == (2, "")
    assert why in err and "Traceback" not in err
