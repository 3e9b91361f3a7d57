"""Which evaluation tasks exist, and a digest of what each of them is."""

import difflib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from impart_core.base.errors import EvaluationError, UnknownNameError
from impart_core.base.files import sha256_of
from impart_core.evaluation.options import MeasureOptions
from impart_core.storage.objects import STORE_FOLDERS

LOCAL_TASKS = ("tinyzoo_math", "tinyzoo_code", "tinyzoo_chat")
LOCAL_METRICS = ("exact_match", "answer_loss")  # of each of them
MEASURING_VERSION = 1  # goes up when evaluate() comes to other numbers on the same tasks
_ZOO = Path(__file__).parents[1] / "tinyzoo"
_MOVED = {"impart_core.base.errors": "impart_core.errors", "impart_core.base.registry": "impart_core.registry"}
LOCAL_FOLDER = _ZOO / "lm_eval_tasks"
USUAL = MeasureOptions()
# What decides on a task of the user's own beside its configuration: what lies in the same folder or below.
_SOURCES = {".py", ".yaml", ".yml", ".jinja", ".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet", ".arrow"}


def named_tasks(tasks: Sequence[str], options: MeasureOptions) -> tuple[tuple[str, ...], MeasureOptions]:
    """Return tasks by their names, where some are given by the path of their YAML file.

    Args:
        tasks: names of tasks, groups or tags, and paths of files of them.
        options: where more tasks lie.

    Returns:
        the names, and the options with the folders of these files, all of them absolute.

    Raises:
        EvaluationError: a folder or file is missing, or lm-eval cannot read what lies there.
    """
    files = {task: Path(task).expanduser().absolute() for task in tasks if task.endswith((".yaml", ".yml"))}
    folders = [Path(place).expanduser().absolute() for place in options.include_path]
    for place in (*folders, *files.values()):
        if not place.exists():
            raise EvaluationError(f"There is no {place}. Give folders of tasks, and tasks by name or YAML file.")
    folders += [file.parent for file in files.values()]
    options = options.model_copy(update={"include_path": tuple(dict.fromkeys(map(str, folders)))})
    by_file = {entry.yaml_path: name for name, entry in task_index(options).items()} if files else {}
    for task, file in files.items():
        if file not in by_file:
            raise EvaluationError(f"{file} defines no task or group that lm-eval finds. It needs `task:` or `group:`.")
        files[task] = Path(by_file[file])
    return tuple(dict.fromkeys(str(files.get(task, task)) for task in tasks)), options


def only_local(tasks: Sequence[str]) -> bool:
    """Return whether all tasks are the zoo's own, so that lm-eval's thousands need not be listed."""
    return set(tasks) <= set(LOCAL_TASKS)


def check_tasks(tasks: Sequence[str], options: MeasureOptions = USUAL) -> None:
    """Check the names of evaluation tasks without loading a model or any data.

    Names of the zoo's own tasks are known without importing lm-eval.

    Args:
        tasks: names of tasks, groups or tags.
        options: where more tasks lie.

    Raises:
        UnknownNameError: naming the first that does not exist, with the nearest names.
    """
    for name in tasks:
        if name not in LOCAL_TASKS and (name.startswith("tinyzoo") or name not in task_index(options)):
            raise _unknown(name, options)


def metrics_of(task: str, options: MeasureOptions = USUAL) -> tuple[str, ...] | None:
    """Return the metrics that evaluating a task gives, as results name them, without loading it or its data.

    Names of the zoo's own tasks are known without importing lm-eval.

    Args:
        task: the name of a task, group or tag that exists.
        options: where more tasks lie.

    Returns:
        Their names, with a filter of answers after a comma where the task has some: none of a tag, or of a group that
        has no score of its own. None where its configuration does not tell, as code of the task's own makes them, or
        those of a group's members.
    """
    if task in LOCAL_TASKS:
        return LOCAL_METRICS
    from lm_eval.api.registry import METRIC_REGISTRY

    config = task_index(options)[task].cfg or {}
    if not config or ("group" in config and not config.get("aggregate_metric_list")):
        return ()
    metrics, filters = config.get("metric_list") or [], config.get("filter_list") or [{"name": "none"}]
    own_code = any(config.get(key) for key in ("class", "group", "process_results"))
    if own_code or not metrics or not all(isinstance(one, dict) for one in (*metrics, *filters)):
        return None
    if any(one.get("hf_evaluate") or str(one.get("metric")) not in METRIC_REGISTRY for one in metrics):
        return None
    pairs = product((one["metric"] for one in metrics), (one.get("name") for one in filters))
    return tuple(metric if name == "none" else f"{metric},{name}" for metric, name in pairs)


def task_fingerprint(tasks: Sequence[str], options: MeasureOptions = USUAL) -> dict[str, str]:
    """Return a digest of what each task is: it changes when the same model could get another result.

    Args:
        tasks: names of tasks, groups or tags.
        options: where more tasks lie.

    Returns:
        A SHA-256 in hexadecimal for each name, over the version of lm-eval and of this package's measuring;
        for the zoo's own tasks also over their sources, which needs no import of lm-eval, and for the others
        over the task's configuration, members included. For tasks from `include_path` it is also over what lies in
        their folders, and the local data files that they name.

    Raises:
        UnknownNameError: a task does not exist.
    """
    check_tasks(tasks, options)
    return {name: _digest_of_task(name, options) for name in tasks}


def _digest_of_task(name: str, options: MeasureOptions) -> str:
    """Return a digest of what a task is, and of what measures it."""
    made_of: dict[str, Any] = {"task": name, "version": MEASURING_VERSION, "lm_eval": version("lm_eval")}
    if name in LOCAL_TASKS:
        sources = _local_sources()
        made_of["sources"] = {file.relative_to(_ZOO).as_posix(): _digest(_without_moves(file)) for file in sources}
    else:
        made_of["configs"] = members_of(name, options)
        if own := _own_sources(made_of["configs"], options):
            made_of["sources"] = own
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
    folders = ("problems", "interpreter", "lm_eval_tasks")
    inside = [file for folder in folders for file in (_ZOO / folder).iterdir() if file.suffix in (".py", ".yaml")]
    return sorted([*inside, _ZOO / "words.py", _ZOO / "splits.py"])


def task_manager(options: MeasureOptions = USUAL) -> Any:
    """Return lm-eval's manager of all its tasks, the zoo's and the user's, whose names go before others.

    Raises:
        EvaluationError: lm-eval cannot read what lies at `include_path`.
    """
    if not options.include_path and not options.metadata:
        return _usual_manager()
    files = [file for place in options.include_path for file in _files_in(Path(place))]
    written = tuple((str(file), file.stat().st_mtime_ns) for file in files)
    return _manager(options.include_path, json.dumps(options.metadata, sort_keys=True), written)


def task_index(options: MeasureOptions) -> Mapping[str, Any]:
    """Return lm-eval's entries of tasks, groups and tags by name; errors as in `task_manager`."""
    index: Mapping[str, Any] = task_manager(options).task_index
    return index


@cache
def _usual_manager() -> Any:
    """Return the manager without the user's tasks; reading lm-eval's thousands of files takes several seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(LOCAL_FOLDER))


@lru_cache(maxsize=8)
def _manager(include_path: tuple[str, ...], metadata: str, written: tuple[tuple[str, int], ...]) -> Any:  # noqa: ARG001 - so that files that were changed are read again
    from lm_eval.tasks import TaskManager

    try:
        manager = TaskManager(
            include_path=list(include_path), include_defaults=False, metadata=json.loads(metadata) or None
        )
    except Exception as error:  # a YAML file of the user's can be wrong in many ways
        raise EvaluationError(
            f"lm-eval cannot read the tasks in {', '.join(include_path)}: {type(error).__name__}: {error}."
        ) from error
    for name, entry in _usual_manager().task_index.items():
        own = manager.task_index.setdefault(name, entry)
        if own is not entry and own.yaml_path is entry.yaml_path is None:  # the same tag
            own.tags.update(entry.tags)
    return manager


def _unknown(name: str, options: MeasureOptions) -> UnknownNameError:
    local = name.startswith("tinyzoo")
    names = LOCAL_TASKS if local else tuple(task_index(options))
    near = " or ".join(repr(found) for found in difflib.get_close_matches(name, names, n=3, cutoff=0.6))
    more = "" if local else f", and {len(names) - len(LOCAL_TASKS)} names of lm-eval, which `lm_eval ls tasks` lists"
    guess = f" Did you mean {near}?" if near else ""
    return UnknownNameError(f"Unknown evaluation task {name!r}.{guess} Known: {', '.join(LOCAL_TASKS)}{more}.")


def members_of(name: str, options: MeasureOptions = USUAL) -> dict[str, Any]:
    """Return the configurations of a task of lm-eval, or of all that a group or tag leads to, by name."""
    index, found, waiting = task_index(options), dict[str, Any](), [name]
    while waiting:
        member = waiting.pop()
        entry = index.get(member)
        if entry is None or member in found:
            continue
        found[member] = _without_places(entry.cfg, options)
        listed = (entry.cfg or {}).get("task", [])
        inner = [*entry.tags] if entry.yaml_path is None else listed if isinstance(listed, list) else []
        names = (one if isinstance(one, str) else one.get("task", one.get("group")) for one in inner)
        waiting.extend(one for one in names if isinstance(one, str))
    return found


def _without_places(value: Any, options: MeasureOptions) -> Any:
    """Replace this machine's paths of task folders, which lm-eval puts into function names."""
    import lm_eval.tasks

    text = json.dumps(value, default=str).replace(str(Path(lm_eval.tasks.__file__).parent), "lm_eval/tasks")
    for place in options.include_path:
        text = text.replace(json.dumps(place)[1:-1], "include_path")
    return json.loads(text)


def _own_sources(configs: Mapping[str, Any], options: MeasureOptions) -> dict[str, str]:
    """Return the digests of the files that tasks from `include_path` are made of, by their paths in its folders."""
    index, folders = task_index(options), [Path(place) for place in options.include_path]
    files: dict[str, Path] = {}
    for name in configs:
        place = index[name].yaml_path
        home = next((folder for folder in folders if place and place.is_relative_to(folder)), None)
        if home is None:
            continue
        files |= {file.relative_to(home).as_posix(): file for file in _files_in(place.parent)}
        files |= _data_files(((index[name].cfg or {}).get("dataset_kwargs") or {}).get("data_files"))
    return {name: sha256_of(file) for name, file in sorted(files.items())}


def _files_in(folder: Path) -> list[Path]:
    """Return the files that tasks in a folder may be made of: none of a store in it, which come and go."""
    found = []
    for place, folders, names in os.walk(folder):
        if folders and not names and STORE_FOLDERS.issuperset(folders):
            folders.clear()
        found += [file for name in names if (file := Path(place, name)).suffix in _SOURCES and file.is_file()]
    return found


def _data_files(value: Any) -> dict[str, Path]:
    """Return the files of this machine among a task's `data_files`: a path, a list of paths, or these by split."""
    if isinstance(value, str):
        return {f"data {value}": Path(value)} if Path(value).is_file() else {}
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return {name: file for part in parts for name, file in _data_files(part).items()}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
