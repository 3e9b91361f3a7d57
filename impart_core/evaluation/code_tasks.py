"""Tasks whose scoring runs code that the model wrote: refused, or scored by a process in a sandbox."""

import json
import logging
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from impart_core.base.errors import EvaluationError
from impart_core.evaluation.catalogue import LOCAL_FOLDER, LOCAL_TASKS, USUAL, members_of, task_index
from impart_core.evaluation.jail import problem_with_jail
from impart_core.evaluation.options import MeasureOptions
from impart_core.evaluation.result import RunCode

_WORKER = "impart_core.evaluation.code_worker"
# All else of the environment may hold credentials, and the code that is run can read the worker's memory.
_KEPT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "XDG_CACHE_HOME")
_KEPT_OF_HUB = ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE")
_log = logging.getLogger(__name__)


def check_code_tasks(tasks: Sequence[str], run_code: RunCode, options: MeasureOptions = USUAL) -> None:
    """Check, before anything is loaded, that code tasks may be run, and that there is a sandbox for them.

    Args:
        tasks: names of tasks, groups or tags that exist.
        run_code: what was allowed.
        options: where more tasks lie.

    Raises:
        EvaluationError: they may not, or there is none.
    """
    foreign = [name for name in tasks if name not in LOCAL_TASKS]
    marked = [name for name in foreign if _runs_code(list(members_of(name, options).values()))]
    if marked:
        _check_allowed(marked, run_code)
        problem = problem_with_jail() if run_code == "sandboxed" else None
        if problem:
            raise EvaluationError(
                f"{_running(marked)} the model writes, and there is no sandbox for it on this machine: {problem}. The "
                "sandbox needs Linux 5.14 or later and user namespaces, which some systems and containers turn off. "
                "Evaluate on a machine that has them, or accept the risk with --run-code-without-sandbox."
            )


def _runs_code(config: Any) -> bool:
    """Say whether a task's configuration, or one inside of it, has lm-eval's mark."""
    if isinstance(config, dict):
        return bool(config.get("unsafe_code")) or any(_runs_code(value) for value in config.values())
    return isinstance(config, list) and any(_runs_code(value) for value in config)


def _check_allowed(marked: Iterable[str], run_code: RunCode) -> None:
    if run_code == "never":
        raise EvaluationError(
            f"{_running(marked)} the model writes. Allow it, in a sandbox, with --run-code (run_code=True in Python)."
        )


def _running(marked: Iterable[str]) -> str:
    return f"The scoring of {', '.join(sorted(marked))} runs code that"


@contextmanager
def code_metrics_allowed(run_code: RunCode) -> Iterator[None]:
    """Set the variable without which the `code_eval` metric cannot even be loaded; it runs a fixed test of its own."""
    before = os.environ.get("HF_ALLOW_CODE_EVAL")
    if run_code != "never":
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"
    try:
        yield
    finally:
        os.environ.pop("HF_ALLOW_CODE_EVAL", None)
        if before is not None:
            os.environ["HF_ALLOW_CODE_EVAL"] = before


@contextmanager
def scored_in_sandbox(
    names: Sequence[str], tasks: Mapping[str, Any], options: MeasureOptions, run_code: RunCode
) -> Iterator[None]:
    """Hand the scoring of the code tasks among loaded tasks to a process of its own while this lasts.

    Args:
        names: names that the tasks were loaded by.
        tasks: the loaded tasks by name.
        options: what they were loaded with.
        run_code: what is allowed.

    Raises:
        EvaluationError: there are code tasks, and they are not allowed or cannot be loaded in that process.
    """
    marked = {name: task for name, task in tasks.items() if getattr(task, "UNSAFE_CODE", False)}
    if not marked or run_code == "unsandboxed":
        yield
        return
    _check_allowed(marked, run_code)
    with _Scorer(names, options) as scorer:
        for name, task in marked.items():
            task.process_results = partial(scorer.score, name)
        yield


class _Scorer:
    """The process that scores answers, each in a sandbox."""

    def __init__(self, names: Sequence[str], options: MeasureOptions) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="impart-code-")
        self._worker = subprocess.Popen(
            [sys.executable, "-P", "-m", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self._folder.name,
            env=_environment(Path(self._folder.name) / "work"),
        )
        self._broken = 0
        start = {"folder": self._folder.name, "names": list(names), "seed": options.seed}
        try:
            self._ask({**start, **_places_of(names, options)})
        except BaseException:
            self.close()
            raise

    def score(self, task: str, doc: Any, results: Sequence[Any]) -> dict[str, Any]:
        """Return the metrics of one item, as the task's `process_results` gives them.

        Raises:
            EvaluationError: not even an empty answer can be scored.
        """
        reply = self._ask({"task": task, "doc": doc, "results": results})
        self._broken += reply["broken"]
        return dict(reply["metrics"])

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._worker.stdin is not None
        assert self._worker.stdout is not None
        try:
            pickle.dump(request, self._worker.stdin)
            self._worker.stdin.flush()
            reply = dict(json.loads(self._worker.stdout.readline()))
        except (OSError, ValueError) as error:
            raise EvaluationError("The process that scores code tasks ended before its time.") from error
        if "problem" in reply:
            raise EvaluationError(f"Code tasks cannot be scored in the sandbox: {reply['problem']}.")
        return reply

    def close(self) -> None:
        """End the process, remove its folder, and tell how many answers broke their scoring."""
        self._worker.kill()
        self._worker.communicate()
        self._folder.cleanup()
        if self._broken:
            _log.warning("%d answers broke or stopped their own scoring; each counts as an empty one.", self._broken)

    def __enter__(self) -> "_Scorer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _places_of(names: Sequence[str], options: MeasureOptions) -> dict[str, Any]:
    """Return where tasks are found: for plain tasks their own folders, so that lm-eval's thousands are not read."""
    entries = [task_index(options).get(name) for name in names]
    plain = [entry.yaml_path.parent for entry in entries if entry and entry.yaml_path and entry.kind.name == "TASK"]
    include = sorted(map(str, plain)) if len(plain) == len(names) else [str(LOCAL_FOLDER), *options.include_path]
    return {"include": include, "defaults": len(plain) < len(names), "metadata": options.metadata}


def _environment(work: Path) -> dict[str, str]:
    """Return the worker's environment: places of caches, no network, no credentials."""
    from huggingface_hub.constants import HF_HOME

    kept = {name: os.environ[name] for name in (*_KEPT, *_KEPT_OF_HUB) if name in os.environ}
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE"), "1")
    places = dict.fromkeys(("HOME", "TMPDIR", "HF_METRICS_CACHE"), str(work))
    more = {"HF_HOME": HF_HOME, "HF_ALLOW_CODE_EVAL": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return {**kept, **offline, **places, **more}
