"""Task names are checked before any model loads, and a task's digest follows its definition."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from impart_core.base.errors import UnknownNameError
from impart_core.evaluation import catalogue
from impart_core.evaluation.catalogue import LOCAL_TASKS, check_tasks, task_fingerprint


def test_local_tasks_need_no_lm_eval() -> None:
    code = (
        "import sys; from impart_core.evaluation.catalogue import *; check_tasks(LOCAL_TASKS);"
        "task_fingerprint(LOCAL_TASKS);"
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
