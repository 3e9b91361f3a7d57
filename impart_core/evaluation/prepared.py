"""Loads lm-eval tasks before any model, and sets them to the split that was asked for."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from impart_core.base.errors import EvaluationError
from impart_core.evaluation.catalogue import LOCAL_FOLDER, only_local, task_manager
from impart_core.evaluation.options import MeasureOptions
from impart_core.evaluation.result import Split


def load_tasks(names: Sequence[str], split: Split, options: MeasureOptions) -> dict[str, Any]:
    """Load tasks with their data.

    Args:
        names: tasks, groups or tags that exist.
        split: `validation` for the validation split; `test` for what lm-eval itself takes, which is the test
            split of a task that has one, and its validation split otherwise.
        options: where more tasks lie, few-shot examples, generation, and the seed of all draws.

    Returns:
        What lm-eval's evaluator takes: its "tasks" by name, and the "groups" they are in.

    Raises:
        EvaluationError: a task's data cannot be loaded, it has no validation split, or an option does not suit it.
    """
    from lm_eval.tasks import TaskManager

    if only_local(names):
        manager = TaskManager(include_path=str(LOCAL_FOLDER), include_defaults=False)
    else:
        manager = task_manager(options)
    random.seed(options.seed)  # some of lm-eval's tasks shuffle answers with the global generator while they load
    try:
        loaded: dict[str, Any] = manager.load(list(names))
    except Exception as error:  # what a task's own code and the data set library raise has no common type
        raise EvaluationError(
            f"The data of {', '.join(names)} cannot be loaded: {type(error).__name__}: {error}. Tasks other than "
            "the zoo's own need a network connection, or their data sets in the local cache."
        ) from error
    for name, task in loaded["tasks"].items():
        _set_up(name, task, split, options)
    _set_generation(loaded["tasks"], options)
    return loaded


def split_of(task: Any) -> Split:
    """Return the split that the items of a loaded task come from."""
    return "test" if task.has_test_docs() else "validation"


def _set_up(name: str, task: Any, split: Split, options: MeasureOptions) -> None:
    if split == "validation":
        if not task.has_validation_docs():
            raise EvaluationError(f"Task {name!r} has no validation split. Evaluate it with --split test.")
        task.has_test_docs = lambda: False  # lm-eval takes the validation split where there is no test split
    usual = task.get_config("num_fewshot")
    if options.num_fewshot and usual == 0:
        raise EvaluationError(
            f"Task {name!r} sets num_fewshot to 0 itself. Leave num_fewshot out, or measure this task by itself."
        )
    if options.num_fewshot and not (task.has_training_docs() or task.has_validation_docs()):
        raise EvaluationError(f"Task {name!r} has no items to take examples from. Leave num_fewshot out.")
    if usual is None or options.num_fewshot is not None:
        task.set_config(key="num_fewshot", value=options.num_fewshot or 0)
    task.set_fewshot_seed(seed=options.seed)


def _set_generation(tasks: Mapping[str, Any], options: MeasureOptions) -> None:
    if not options.gen_kwargs:
        return
    generating = [task for task in tasks.values() if task.get_config("output_type") == "generate_until"]
    if not generating:
        raise EvaluationError(f"None of {', '.join(tasks)} generates text. Leave gen_kwargs out.")
    for task in generating:
        task.set_config(key="generation_kwargs", value=dict(options.gen_kwargs), update=True)
