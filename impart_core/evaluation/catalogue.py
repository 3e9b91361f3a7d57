"""Which evaluation tasks exist, and a digest of what each of them is."""

import difflib
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from impart_core.base.errors import UnknownNameError

LOCAL_TASKS = ("tinyzoo_math", "tinyzoo_code", "tinyzoo_chat")
MEASURING_VERSION = 1  # goes up when evaluate() comes to other numbers on the same tasks
_ZOO = Path(__file__).parents[1] / "tinyzoo"
_MOVED = {"impart_core.base.errors": "impart_core.errors", "impart_core.base.registry": "impart_core.registry"}
LOCAL_FOLDER = _ZOO / "lm_eval_tasks"


def check_tasks(tasks: Sequence[str]) -> None:
    """Check the names of evaluation tasks without loading a model or any data.

    Names of the zoo's own tasks are known without importing lm-eval.

    Args:
        tasks: names of tasks, groups or tags.

    Raises:
        UnknownNameError: naming the first that does not exist, with the nearest names.
    """
    for name in tasks:
        if name not in LOCAL_TASKS and (name.startswith("tinyzoo") or name not in lm_eval_manager().task_index):
            raise _unknown(name)


def task_fingerprint(tasks: Sequence[str]) -> dict[str, str]:
    """Return a digest of what each task is: it changes when the same model could get another result.

    Args:
        tasks: names of tasks, groups or tags.

    Returns:
        A SHA-256 in hexadecimal for each name, over the version of lm-eval and of this package's measuring;
        for the zoo's own tasks also over their sources, which needs no import of lm-eval, and for the others
        over the task's configuration, members included.

    Raises:
        UnknownNameError: a task does not exist.
    """
    check_tasks(tasks)
    return {name: _digest_of_task(name) for name in tasks}


def _digest_of_task(name: str) -> str:
    """Return a digest of what a task is, and of what measures it."""
    made_of: dict[str, Any] = {"task": name, "version": MEASURING_VERSION, "lm_eval": version("lm_eval")}
    if name in LOCAL_TASKS:
        sources = _local_sources()
        made_of["sources"] = {file.relative_to(_ZOO).as_posix(): _digest(_without_moves(file)) for file in sources}
    else:
        made_of["configs"] = _configs(name, {})
    return _digest(json.dumps(made_of, sort_keys=True, default=str).encode())


def _without_moves(file: Path) -> bytes:
    """Return a source as it reads with the first names of the modules that it imports.

    Where a module lies in this package decides on no item and no answer, and a move must not repeat evaluations.
    """
    data = file.read_bytes()
    for now, first in _MOVED.items():
        data = data.replace(f"from {now} import".encode(), f"from {first} import".encode())
    return data


def _local_sources() -> list[Path]:
    """List the files that decide on items, answers and checks, in a fixed order."""
    folders = ("problems", "sandbox", "lm_eval_tasks")
    inside = [file for folder in folders for file in (_ZOO / folder).iterdir() if file.suffix in (".py", ".yaml")]
    return sorted([*inside, _ZOO / "words.py", _ZOO / "splits.py"])


@cache
def lm_eval_manager() -> Any:
    """Return lm-eval's manager of all its tasks and the zoo's; reading the task files takes several seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(LOCAL_FOLDER))


def _unknown(name: str) -> UnknownNameError:
    local = name.startswith("tinyzoo")
    names = LOCAL_TASKS if local else tuple(lm_eval_manager().task_index)
    near = " or ".join(repr(found) for found in difflib.get_close_matches(name, names, n=3, cutoff=0.6))
    more = "" if local else f", and {len(names) - len(LOCAL_TASKS)} names of lm-eval, which `lm_eval ls tasks` lists"
    guess = f" Did you mean {near}?" if near else ""
    return UnknownNameError(f"Unknown evaluation task {name!r}.{guess} Known: {', '.join(LOCAL_TASKS)}{more}.")


def _configs(name: str, seen: dict[str, Any]) -> dict[str, Any]:
    """Collect the configurations of a task, or of all that a group or tag leads to, by name."""
    entry = lm_eval_manager().task_index.get(name)
    if entry is None or name in seen:
        return seen
    seen[name] = _without_place(entry.cfg)
    listed = (entry.cfg or {}).get("task", [])
    members = [*entry.tags] if entry.yaml_path is None else listed if isinstance(listed, list) else []
    for member in members:
        inner = member if isinstance(member, str) else member.get("task", member.get("group"))
        if isinstance(inner, str):
            _configs(inner, seen)
    return seen


def _without_place(value: Any) -> Any:
    """Replace this machine's path of lm-eval's task folder, which lm-eval puts into function names."""
    import lm_eval.tasks

    here = str(Path(lm_eval.tasks.__file__).parent)
    return json.loads(json.dumps(value, default=str).replace(here, "lm_eval/tasks"))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
