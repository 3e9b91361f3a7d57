"""Where artifacts come from, through the command line: lineage, why, diff, and names with their history."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.e2e.here import impart, printed, told
from tests.support import Environment, manifests, run_impart, run_together

pytestmark = pytest.mark.e2e

Pair = tuple[Path, Path]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that this file's commands share."""
    return tmp_path_factory.mktemp("lineage") / "store"


@pytest.fixture(scope="module")
def made(pair: Pair, store: Path, environment: Environment) -> list[str]:
    """The deltas of one pair at CR 4 and 5, named tiny@cr4 and tiny@cr5."""
    place = ["--store", str(store)]
    commands = [["compress", *map(str, pair), "--cr", cr, "--name", f"tiny@cr{cr}", *place] for cr in ("4", "5")]
    return [report["artifact"] for report in run_together(*commands, environment=environment)]


def test_every_format_shows_the_same_graph(made: list[str], pair: Pair, store: Path, tmp_path: Path) -> None:
    place = ["lineage", "tiny@cr4", "--store", str(store)]
    graph, drawn, whole = told(*place), told(*place, "--format", "dot"), told(*place, "--blocks")
    assert graph["focus"] == made[0]
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for node in graph["nodes"]:
        by_kind.setdefault(node["kind"], []).append(node)
    assert {kind: [node["count"] for node in nodes] for kind, nodes in by_kind.items()} == {
        "delta": [1],
        "checkpoint": [1, 1],
        "block": [3],
        "factors": [2],
    }
    assert [node["location"] for node in by_kind["checkpoint"]] == [str(folder) for folder in pair]
    assert (drawn["nodes"], drawn["edges"]) == (len(graph["nodes"]), len(graph["edges"])) == (5, 4)
    assert drawn["drawing"].startswith("digraph")
    assert len(whole["nodes"]) == 1 + 2 + 3 + 2
    assert json.loads(printed(*place, "--format", "json")) == graph
    assert printed(*place, "--format", "mermaid").startswith("flowchart LR\n")
    picture = tmp_path / "tiny.svg"
    assert str(picture) in printed(*place, "--format", "svg", "--out", str(picture))
    assert len(ElementTree.parse(picture).getroot().findall("{http://www.w3.org/2000/svg}svg")) == 5
    text = printed(*place)
    for word in (made[0][:12], "(tiny@cr4)", "impart at CR 4", "3 blocks", "2 factors", *map(str, pair)):
        assert word in text


def test_factors_led_to_both_deltas(made: list[str], store: Path) -> None:
    factors = next(iter(manifests(store, "factors")))
    graph = told("lineage", factors, "--store", str(store))
    assert {node["id"] for node in graph["nodes"] if node["kind"] == "delta"} == set(made)


def test_why_tells_inputs_settings_code_and_run(made: list[str], pair: Pair, store: Path) -> None:
    found = told("why", "tiny@cr4", "--store", str(store))
    assert [(given["role"], given["location"]) for given in found["inputs"]] == [
        ("base", str(pair[0])),
        ("finetuned", str(pair[1])),
    ]
    assert (found["config"]["cr"], found["seeds"], found["names"]) == (4.0, {"seed": 0}, ["tiny@cr4"])
    text = printed("why", "tiny@cr4", "--store", str(store))
    for word in (made[0], "seed = 0", str(pair[0]), found["provenance"]["code_digest"][:12], "torch"):
        assert word in text


def test_all_that_one_run_made_names_it_and_where_its_inputs_lay(made: list[str], pair: Pair, store: Path) -> None:
    found = manifests(store)
    runs = [found[delta]["provenance"]["run"] for delta in made]
    assert len(set(runs)) == 2
    ours, theirs = ({block["id"] for block in found[delta]["content"]["blocks"]} for delta in made)
    for run_id, own in zip(runs, (ours - theirs, theirs - ours), strict=True):
        assert {found[block]["provenance"]["run"] for block in own} == {run_id}
    for manifest in found.values():
        assert manifest["provenance"]["sources"] == {"base": str(pair[0]), "finetuned": str(pair[1])}
        assert len(manifest["provenance"]["code_digest"]) == 64


def test_diff_lists_what_differs_and_says_when_nothing_does(made: list[str], store: Path) -> None:
    place = ["--store", str(store)]
    differing, same = told("diff", "tiny@cr4", "tiny@cr5", *place), told("diff", "tiny@cr4", made[0], *place)
    assert differing["config"] == [{"what": "cr", "a": 4.0, "b": 5.0}]
    assert {"cr_projection", "bytes"} <= {change["what"] for change in differing["content"]}
    assert (differing["same"], differing["provenance"], differing["shared_blocks"]) == (False, [], 1)
    assert same["same"]
    assert "cr: 4 → 5" in printed("diff", "tiny@cr4", "tiny@cr5", *place)
    assert "one artifact" in printed("diff", "tiny@cr4", "tiny@cr4", *place)


def test_a_name_is_moved_rolled_back_and_keeps_its_history(made: list[str], store: Path) -> None:
    place = ["--store", str(store)]
    for name in ("tiny@cr4", "tiny@cr5"):
        moved = told("tag", name, "tiny@prod", *place)
    assert (moved["id"], moved["number"], moved["why"]) == (made[1], 2, "tag")
    assert made[0][:12] in printed("rollback", "tiny@prod", *place)
    assert impart("rollback", "tiny@prod", *place)[0] == 2  # nothing is further back
    assert told("rollback", "tiny@prod", "--to", "2", *place)["id"] == made[1]
    code, _, err = impart("tag", "tiny@prod", made[0][:8], *place)
    assert (code, f"Did you mean `impart tag {made[0][:8]} tiny@prod`?" in err) == (2, True)
    moves = told("history", "tiny@prod", *place)["moves"]
    assert [(move["number"], move["id"], move["why"]) for move in moves] == [
        (1, made[0], "tag"),
        (2, made[1], "tag"),
        (3, made[0], "rollback to 1"),
        (4, made[1], "rollback to 2"),
    ]
    assert printed("history", "tiny@prod", *place).rstrip().endswith("now")
    assert told("history", "tiny@cr4", *place)["moves"][0]["why"] == "compress"


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["lineage", "tiny@cr4", "--format", "svgg"], "Unknown format 'svgg'. Did you mean 'svg'?"),
        (["lineage", "tiny@cr4", "--format", "svg", "--out", "/"], "/ is a folder. --out takes the name of a file"),
        (["rollback", "tiny@cr4", "--to", "7"], "'tiny@cr4' has no move 7. Its moves are 1 to 1."),
        (["history", "tiny@cr44"], "Did you mean 'tiny@cr4'?"),
        (["tag", "tiny@new", "tiny@cr4"], "Did you mean `impart tag tiny@cr4 tiny@new`?"),
    ],
)
@pytest.mark.usefixtures("made")
def test_a_wrong_request_is_one_sentence(command: list[str], sentence: str, store: Path) -> None:
    code, out, err = impart(*command, "--store", str(store))
    assert (code, out, err.count("error: ")) == (2, "", 1)
    assert sentence in err


@pytest.mark.usefixtures("made")
def test_a_process_of_its_own_prints_the_same(store: Path) -> None:
    done = run_impart("lineage", "tiny@cr4", "--store", str(store))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == printed("lineage", "tiny@cr4", "--store", str(store))
