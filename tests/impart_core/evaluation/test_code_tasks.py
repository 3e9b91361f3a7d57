"""Tasks that run code of the model's: refused without a flag, contained with it, as in lm-eval with the second."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from impart_core import tinyzoo
from impart_core.base.errors import EvaluationError
from impart_core.evaluation.code_tasks import check_code_tasks
from impart_core.evaluation.harness import Evaluator
from impart_core.evaluation.jail import problem_with_jail
from impart_core.evaluation.options import MeasureOptions
from impart_core.evaluation.result import RunCode
from tests.e2e.here import impart
from tests.impart_core.evaluation import code_task

pytestmark = pytest.mark.e2e

needs_jail = pytest.mark.skipif(problem_with_jail() is not None, reason="this machine has no jail")


SECRET = "5ecret"
HARMLESS = [("", "assert f"), ("", "assert not f"), ("import math", "assert math.pi"), ("open('a', 'w')", "")]


def attacks(secret: Path) -> list[tuple[str, str]]:
    """Return programs that pass where they see nothing of the process that evaluates, and one that ends its scoring."""
    memory = "import gc, os\nfound = [v for d in gc.get_objects() if type(d) is dict for v in list(d.values())]\n"
    memory += f"assert {SECRET[::-1]!r}[::-1].encode() not in [v for v in found if type(v) is bytes]"
    return [
        (f"import os\nassert not os.path.exists({str(secret)!r})", ""),
        ("import os\nassert not {'AWS_SECRET_ACCESS_KEY', 'HF_TOKEN'} & set(os.environ)", ""),
        (memory, ""),
        ("import os\nassert os.getppid() == 1 and not os.path.exists('/proc')", ""),
        ("import os, signal\nos.kill(-1, signal.SIGKILL)", ""),
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which lm-eval finds code tasks whose data is here, and a secret beside it."""
    folder = tmp_path_factory.mktemp("code") / "tasks"
    folder.mkdir()
    (folder.parent / "secret").write_text("untouched")
    code_task.write(folder, "code_harmless", HARMLESS)
    code_task.write(folder, "code_attacks", attacks(folder.parent / "secret"))
    broken = "def process_results(doc, results):\n    raise KeyError('column')\n"
    code_task.write(folder, "code_broken", [("", "")], broken)
    return folder


def options_of(folder: Path) -> MeasureOptions:
    return MeasureOptions(include_path=(str(folder),))


def passed(name: str, folder: Path, run_code: RunCode) -> float:
    evaluator = Evaluator(tinyzoo.path("code"), options=options_of(folder), run_code=run_code)
    return evaluator.measure([name]).tasks[name].metrics["passed"].value


@pytest.mark.parametrize("name", ["humaneval", "mbpp_plus_instruct", "cruxeval_output", "longproc", "code_harmless"])
def test_code_tasks_need_the_flag(folder: Path, name: str) -> None:
    with pytest.raises(EvaluationError, match=rf"The scoring of {name} runs code .* with --run-code"):
        check_code_tasks(["tinyzoo_math", name, "gsm8k"], "never", options_of(folder))
    check_code_tasks([name], "unsandboxed", options_of(folder))
    check_code_tasks(["tinyzoo_code", "gsm8k"], "never", options_of(folder))


def test_a_loaded_code_task_needs_the_flag_too(folder: Path) -> None:
    with pytest.raises(EvaluationError, match=r"runs code .* with --run-code"):
        passed("code_harmless", folder, "never")


def test_the_command_refuses_before_work_starts(tmp_path: Path) -> None:
    arguments = ["evaluate", str(tinyzoo.path("code")), "--tasks", "humaneval", "--store", str(tmp_path / "store")]
    code, out, err = impart(*arguments)
    assert (code, out) == (2, "")
    assert "with --run-code" in err
    assert "Traceback" not in err


@needs_jail
def test_the_metrics_are_those_that_lm_eval_finds_without_a_sandbox(folder: Path, tmp_path: Path) -> None:
    contained = passed("code_harmless", folder, "sandboxed")
    assert contained == 3 / 4
    here = Path.cwd()
    os.chdir(tmp_path)  # one of the programs writes a file
    try:
        assert passed("code_harmless", folder, "unsandboxed") == contained
    finally:
        os.chdir(here)
    assert (tmp_path / "a").exists()


@needs_jail
def test_items_are_scored_one_by_one_in_the_sandbox_too(folder: Path) -> None:
    evaluator = Evaluator(tinyzoo.path("code"), options=options_of(folder), run_code="sandboxed")
    scores = evaluator.measure_items("code_harmless", (0, 4), split="test").scores["passed"]
    assert sorted(scores) == [0, 1, 1, 1]


@needs_jail
def test_what_the_model_runs_sees_nothing_of_this_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    with caplog.at_level(logging.WARNING):
        assert passed("code_attacks", folder, "sandboxed") == 4 / 5
    assert "1 answers broke or stopped their own scoring" in caplog.text
    assert (folder.parent / "secret").read_text() == "untouched"


@needs_jail
def test_a_task_that_cannot_score_even_an_empty_answer_is_refused(folder: Path) -> None:
    with pytest.raises(EvaluationError, match=r"cannot be scored in the sandbox: KeyError: 'column'"):
        passed("code_broken", folder, "sandboxed")


def test_where_there_is_no_sandbox_it_is_refused(tmp_path: Path) -> None:
    program = (
        "from impart_core.evaluation.code_tasks import check_code_tasks; check_code_tasks(['humaneval'], 'sandboxed')"
    )
    command = [sys.executable, "-c", program]
    if problem_with_jail() is None:
        if not shutil.which("unshare"):
            pytest.skip("there is no command that takes user namespaces away")
        forbid = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
        command = ["unshare", "--user", "--map-root-user", "sh", "-c", forbid, "sh", *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "there is no sandbox for it on this machine" in done.stderr
    assert "--run-code-without-sandbox" in done.stderr
