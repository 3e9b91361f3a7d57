"""Program: scores the answers to code tasks, each in a jail of its own.

It loads the tasks, which is work of lm-eval and of the task's author, outside of the jail, in a process without the
environment and the memory of the one that asks. A request is a pickle on standard input; a reply is a line of JSON.
"""

import json
import os
import pickle
import random
import sys
from pathlib import Path
from typing import Any

from impart_core.evaluation.jail import Jail, JailError

SECONDS = 60.0  # for the scoring of an item, and for each answer to it
SECONDS_AN_ANSWER = 10.0


def emptied(results: Any) -> Any:
    """Return results with nothing in each text."""
    if isinstance(results, str):
        return ""
    return [emptied(one) for one in results] if isinstance(results, list | tuple) else results


def count_texts(results: Any) -> int:
    """Return how many texts there are in results."""
    return sum(map(count_texts, results)) if isinstance(results, list | tuple) else int(isinstance(results, str))


def load(start: dict[str, Any]) -> dict[str, Any]:
    """Load tasks by the names and with the seed of the first request."""
    from lm_eval.tasks import TaskManager

    random.seed(start["seed"])
    manager = TaskManager(
        include_path=start["include"], include_defaults=start["defaults"], metadata=start["metadata"] or None
    )
    return dict(manager.load(start["names"])["tasks"])


def score(jail: Jail, task: Any, doc: Any, results: list[Any]) -> dict[str, Any]:
    """Score one item; an answer that breaks or stops its scoring counts as an empty one.

    Raises:
        JailError: not even an empty answer can be scored.
    """
    seconds = SECONDS + SECONDS_AN_ANSWER * count_texts(results)
    try:
        return {"metrics": jail.run(lambda: dict(task.process_results(doc, results)), seconds), "broken": 0}
    except JailError:
        empty = emptied(results)
        return {"metrics": jail.run(lambda: dict(task.process_results(doc, empty)), seconds), "broken": 1}


def main() -> None:
    """Serve requests until standard input ends."""
    with os.fdopen(os.dup(1), "w") as replies:
        os.dup2(2, 1)  # what libraries print is no reply

        def reply(message: dict[str, Any]) -> None:
            print(json.dumps(message), file=replies, flush=True)

        start = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the process that started this one
        folder = Path(start["folder"])
        jail = Jail(folder / "root", folder / "work", tuple(Path(place) for place in start["include"]))
        try:
            jail.root.mkdir()
            jail.work.mkdir()
            tasks = load(start)
            reply({})
        except Exception as error:  # what a task's own code raises has no common type
            reply({"problem": f"{type(error).__name__}: {error}"})
            return
        while True:
            try:
                request = pickle.load(sys.stdin.buffer)  # noqa: S301
            except EOFError:
                return
            try:
                reply(score(jail, tasks[request["task"]], request["doc"], request["results"]))
            except JailError as error:
                reply({"problem": str(error)})


if __name__ == "__main__":
    main()
