"""A search whose process is killed wherever it may be, and two at the same moment: nothing is evaluated twice."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from impart_core import tinyzoo
from impart_core.artifacts.study import read_study
from impart_core.store.names import resolve
from impart_core.store.store import Store
from tests.faults.searching import HOOKS, KILLED, MEET, run_searches
from tests.faults.tally import Tally
from tests.faults.warm import beside
from tests.impart_core.evaluation.own_tasks import SUMS, sums, write_task
from tests.support import Environment, data_files, manifests, whole_files

pytestmark = pytest.mark.faults

# Where a search may be killed, in the order in which it comes by; the evaluations that each of these loses.
KILLS = {
    "while a trial is evaluated": 1,
    "while a trial is published": 1,
    "between telling and the next suggestion": 0,
    "while the winner is scored": 1,
    "while the study is published": 0,
    "before the winner has its name": 0,
}


Searched = dict[str, Path]


class Log(NamedTuple):
    """What searches evaluated: how many evaluations they began, and how often each trial was published."""

    began: int
    published: Counter[str]
    processes: int


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search by TPE, whose suggestions depend on all scores before them, on a task with few items."""
    folder = tmp_path_factory.mktemp("search")
    write_task(folder, {"validation": sums(range(10, 18)), "test": sums(range(30, 34))}, **SUMS)
    template = {
        **{"base": str(tinyzoo.path("base")), "finetuned": str(tinyzoo.path("math"))},
        **{"cr": {"range": [4, 32], "log": True}, "method": {"choose": ["magnitude", "dare"]}},
    }
    settings = {
        **{"name": "math@best", "compress": template, "tasks": {str(folder / "my_sums.yaml"): "answer_loss"}},
        **{"objectives": ["mean", "bytes"], "sampler": {"name": "tpe", "startup": 2}, "budget": {"trials": 6}},
        **{"parallel": 2, "items": 3, "starts": []},
    }
    path = folder / "search.yaml"
    path.write_text(json.dumps(settings))  # JSON is YAML
    return path


def log_of(store: Path) -> Log:
    lines = [line.split() for line in store.with_name("log").read_text().splitlines()]
    return Log(
        sum(line[1] == "began" for line in lines),
        Counter(line[2] for line in lines if line[1] == "published"),
        len({line[0] for line in lines}),
    )


def found_in(store: Path) -> dict[str, Any]:
    """Return what a search found: its id, and its record without how long what took."""
    opened = Store(store)
    study = resolve(opened, "math.study@best")
    record = read_study(opened, study).model_dump(mode="json", exclude={"tally"})
    for trial in record["study"]["trials"]:
        del trial["seconds"]
    return {"id": study, "winner": resolve(opened, "math@best"), **record}


@pytest.fixture(scope="module")
def searched(file: Path, environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """Searches of the same file in three stores: undisturbed, killed again and again, and two at the same moment."""
    stores = {name: tmp_path_factory.mktemp(name) / "store" for name in ("undisturbed", "killed", "both")}

    def run(name: str, hook: str = "") -> tuple[str, str, list[str]]:
        store = stores[name]
        options = ["--store", str(store), "--device", "cpu", "--workers", "1"]
        return str(store.with_name("log")), hook, ["search", "run", str(file), *options]

    groups = [[run("undisturbed")], *([run("killed", hook)] for hook in KILLS), [run("killed")]]
    with beside(run_searches, [*groups, [run("both", MEET), run("both", MEET)]], environment=environment) as process:
        codes = process.result(timeout=1800)["codes"]
        assert codes == [[0], *([KILLED] for _ in KILLS), [0], [0, 0]], process.said()
    return stores


def test_a_search_evaluates_each_trial_once(searched: Searched) -> None:
    log = log_of(searched["undisturbed"])
    assert log.published == Counter(list(manifests(searched["undisturbed"], "trial")))
    assert log.began == len(log.published)
    assert len(found_in(searched["undisturbed"])["study"]["trials"]) == 6


def test_a_search_killed_anywhere_ends_as_an_undisturbed_one(searched: Searched, count: Tally) -> None:
    assert KILLS.keys() == HOOKS.keys()
    count("searches killed", len(KILLS))
    log = log_of(searched["killed"])
    assert_same(searched, "killed")
    assert log.began == len(log.published) + sum(KILLS.values())


def test_two_searches_at_the_same_moment_evaluate_each_trial_once(searched: Searched, count: Tally) -> None:
    count("searches beside one another", 2)
    log = log_of(searched["both"])
    assert log.processes == 2
    assert_same(searched, "both")
    assert log.began == len(log.published)


def assert_same(searched: Searched, name: str) -> None:
    """Check that a search ended as the undisturbed one, and published the same trials, each once."""
    store, undisturbed = searched[name], searched["undisturbed"]
    assert found_in(store) == found_in(undisturbed)
    assert whole_files(store, "trial", "delta") == data_files(undisturbed, "trial", "delta")
    assert log_of(store).published == log_of(undisturbed).published
    assert list(store.glob("claims/*")) == []
