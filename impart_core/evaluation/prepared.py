"""Loads lm-eval tasks before any model, and sets them to the split that was asked for."""

import random
from collections.abc import Sequence
from typing import Any

from impart_core.base.errors import EvaluationError
from impart_core.evaluation.catalogue import LOCAL_FOLDER, LOCAL_TASKS, lm_eval_manager
from impart_core.evaluation.result import Split


def load_tasks(names: Sequence[str], split: Split, seed: int) -> dict[str, Any]:
    """Load tasks with their data.

    Args:
        names: tasks, groups or tags that exist.
        split: `validation` for the validation split; `test` for what lm-eval itself takes, which is the test
            split of a task that has one, and its validation split otherwise.
        seed: seed of a task's own draws and of its few-shot examples.

    Returns:
        What lm-eval's evaluator takes: its "tasks" by name, and the "groups" they are in.

    Raises:
        EvaluationError: a task's data cannot be loaded, or it has no validation split.
    """
    from lm_eval.tasks import TaskManager

    local = set(names) <= set(LOCAL_TASKS)  # then lm-eval's thousands need not be listed
    manager = TaskManager(include_path=str(LOCAL_FOLDER), include_defaults=False) if local else lm_eval_manager()
    random.seed(seed)  # some of lm-eval's tasks shuffle answers with the global generator while they load
    try:
        loaded: dict[str, Any] = manager.load(list(names))
    except Exception as error:  # what a task's own code and the data set library raise has no common type
        raise EvaluationError(
            f"The data of {', '.join(names)} cannot be loaded: {type(error).__name__}: {error}. Tasks other than "
            "the zoo's own need a network connection, or their data sets in the local cache."
        ) from error
    for name, task in loaded["tasks"].items():
        _set_up(name, task, split, seed)
    return loaded


def split_of(task: Any) -> Split:
    """Return the split that the items of a loaded task come from."""
    return "test" if task.has_test_docs() else "validation"


def _set_up(name: str, task: Any, split: Split, seed: int) -> None:
    if split == "validation":
        if not task.has_validation_docs():
            raise EvaluationError(
                f"Task {name!r} has no validation split. Evaluate it on the test split."
            )
        task.has_test_docs = lambda: False  # lm-eval takes the validation split where there is no test split
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=seed)
