"""Searches that tell what they evaluate, in processes forked from one that has imported what they need.

Hooks kill a search in chosen places, each of them once the search has got a little further than the one before.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import impart_core.engine.search as searching
from impart_core.engine import candidates, trial
from impart_core.evaluation.harness import Evaluator
from impart_core.searching.suggest import Suggester
from impart_core.storage.folder import FolderObjects
from impart_core.store import claims
from tests.faults.calibrating import before, die
from tests.faults.warm import impart

_NEEDED = (
    *("datasets", "lm_eval.evaluator", "lm_eval.models.huggingface", "lm_eval.tasks", "matplotlib.figure"),
    *("optuna.importance", "optuna.samplers._tpe.sampler", "transformers.models.auto.modeling_auto"),
    *("transformers.models.llama.modeling_llama", "transformers.generation", "impart_flows.search"),
)
Run = tuple[str, str, Sequence[str]]  # its log, its hook or "", and what follows `impart`


def run_searches(groups: Sequence[Sequence[Run]]) -> None:
    """Run groups of searches one after the other, those of a group at the same time; print how each ended.

    Each has a process of its own, and writes to its log what it begins to evaluate and what it has published of that.
    """
    for module in _NEEDED:
        import_module(module)
    codes = []
    for group in groups:
        children = []
        for run in group:
            child = os.fork()
            if child == 0:
                _search(*run)
            children.append(child)
        codes.append([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
    print(json.dumps({"codes": codes}))


def _search(log: str, hook: str, arguments: Sequence[str]) -> None:
    """Run one search, and end this process."""
    code = 1
    try:
        os.dup2(2, 1)  # standard output is for how all ended
        if hook == MEET:
            _meet(Path(log))
        elif hook:
            HOOKS[hook]()
        _tell(log)  # after the hook, so that what it stops is told as begun
        impart(*arguments)
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    finally:
        os._exit(code)


def _tell(log: str) -> None:
    def tell(*words: object) -> None:
        with Path(log).open("a") as file:
            print(os.getpid(), *words, file=file)

    after(trial, "publish_trial", lambda store, recipe, *_: tell("published", recipe.id))
    before(Evaluator, "measure_items", lambda *_: True, lambda: tell("began"))


def _meet(log: Path) -> None:
    """Claim a second trial only once another search has begun to evaluate one, too."""
    own = str(os.getpid())

    def wait() -> None:
        while not (log.exists() and any(line.split()[0] != own for line in log.read_text().splitlines())):
            time.sleep(0.01)

    before(claims, "_taken", nth(2), wait)


def after(owner: Any, name: str, act: Callable[..., object]) -> None:
    """Do something in this process with the arguments of a function whenever it has done its work."""
    real = getattr(owner, name)

    def hooked(*given: Any, **named: Any) -> Any:
        found = real(*given, **named)
        act(*given)
        return found

    setattr(owner, name, hooked)


def nth(number: int) -> Callable[..., bool]:
    """Return what is true at its call of this number."""
    calls = 0

    def counted(*_: object) -> bool:
        nonlocal calls
        calls += 1
        return calls == number

    return counted


def die_when_creating(kind: bytes, number: int) -> None:
    """Die when the files of an artifact of a kind are there, and its manifest is not."""
    reached = nth(number)
    quoted = b'"kind":"' + kind + b'"'

    def is_reached(_: object, path: str, data: bytes) -> bool:
        return path.endswith("/manifest.json") and quoted in data and reached()

    before(FolderObjects, "create", is_reached, die)


def die_when_the_winner_is_scored() -> None:
    begun: list[bool] = []
    before(candidates, "trial_job", lambda run, label, *_: label == "winner", lambda: begun.append(True))
    after(Evaluator, "measure_items", lambda *_: begun and die())


HOOKS: dict[str, Callable[[], None]] = {
    "while a trial is evaluated": lambda: before(Evaluator, "measure_items", nth(2), die),
    "while a trial is published": lambda: die_when_creating(b"trial", 2),
    "between telling and the next suggestion": lambda: before(Suggester, "ask", nth(3), die),
    "while the winner is scored": die_when_the_winner_is_scored,
    "while the study is published": lambda: die_when_creating(b"study", 1),
    "before the winner has its name": lambda: before(searching, "set_ref", nth(1), die),
}
KILLED = -signal.SIGKILL
MEET = "meet another search"
