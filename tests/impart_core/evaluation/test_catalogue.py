"""Task names are checked before any model loads, and a task's digest follows its definition."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from impart_core import tinyzoo
from impart_core.base.errors import UnknownNameError
from impart_core.evaluation import catalogue
from impart_core.evaluation.catalogue import LOCAL_METRICS, LOCAL_TASKS, check_tasks, metrics_of, task_fingerprint
from impart_core.evaluation.harness import Evaluator
from impart_core.evaluation.prepared import load_tasks
from tests.impart_core.evaluation.own_tasks import CHOICES, SUMS, sums, write_task


def test_local_tasks_need_no_lm_eval() -> None:
    code = (
        "import sys; from impart_core.evaluation.catalogue import *; check_tasks(LOCAL_TASKS);"
        "task_fingerprint(LOCAL_TASKS); [metrics_of(name) for name in LOCAL_TASKS];"
        "print('lm_eval' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_digests_are_stable_and_differ() -> None:
    digests = task_fingerprint(LOCAL_TASKS)
    assert digests == task_fingerprint(LOCAL_TASKS)
    assert list(digests) == list(LOCAL_TASKS)
    assert len(set(digests.values())) == 3


@pytest.mark.parametrize(
    "changed", ["words.py", "splits.py", "problems/math.py", "interpreter/walk.py", "lm_eval_tasks/_tinyzoo.yaml"]
)
def test_a_change_of_any_source_changes_the_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    copy = tmp_path / "tinyzoo"
    shutil.copytree(catalogue._ZOO, copy, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    before = task_fingerprint(["tinyzoo_math"])
    monkeypatch.setattr(catalogue, "_ZOO", copy)
    assert task_fingerprint(["tinyzoo_math"]) == before
    with (copy / changed).open("a") as file:
        file.write("\n# changed\n")
    assert task_fingerprint(["tinyzoo_math"]) != before


@pytest.mark.e2e
def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'tinyzoo_math'"):
        check_tasks(["tinyzoo_mth"])
    with pytest.raises(UnknownNameError, match="Did you mean 'hellaswag'"):
        check_tasks(["hellaswg"])


@pytest.mark.e2e
def test_tasks_of_lm_eval_are_known_and_have_digests() -> None:
    names = ["gsm8k", "hellaswag", "mmlu", "ai2_arc"]  # two tasks, a group of groups, a tag
    check_tasks(names)
    digests = task_fingerprint(names)
    assert len(set(digests.values())) == 4
    assert len(catalogue.members_of("mmlu")) > 50


@pytest.mark.e2e
def test_metrics_are_told_as_results_name_them_where_the_configuration_alone_tells() -> None:
    strict, flexible = "exact_match,strict-match", "exact_match,flexible-extract"
    assert metrics_of("gsm8k") == (strict, flexible)
    assert metrics_of("arc_easy") == ("acc", "acc_norm")
    for name in ("humaneval", "ifeval", "squadv2", "mmlu"):  # own metrics, own code, a group with a score
        assert metrics_of(name) is None
    assert metrics_of("ai2_arc") == ()  # a tag
    for name, task in load_tasks(LOCAL_TASKS, "test", catalogue.USUAL)["tasks"].items():
        assert metrics_of(name) == LOCAL_METRICS == tuple(task.aggregation())


@pytest.mark.e2e
@pytest.mark.parametrize("listed", [["exact_match"], [{"metric": ["exact_match"]}], "exact_match", None])
def test_of_a_list_of_metrics_in_another_form_nothing_is_told(listed: object, tmp_path: Path) -> None:
    name, options = write_task(tmp_path, {"test": sums(range(4))}, **{**SUMS, "metric_list": listed})
    assert metrics_of(name, options) is None


@pytest.mark.e2e
def test_metrics_of_a_task_of_ones_own_are_those_that_a_run_gives(tmp_path: Path) -> None:
    listed = [{"metric": "acc"}, {"metric": "acc_norm"}]
    items = {"validation": sums(range(4)), "test": sums(range(4, 8))}
    name, options = write_task(tmp_path / "a", items, **{**CHOICES, "metric_list": listed})
    measured = Evaluator(tinyzoo.path("math"), options=options).measure([name], limit=2)
    assert metrics_of(name, options) == tuple(measured.tasks[name].metrics)
