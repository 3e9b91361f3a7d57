"""A run of the zoo asks its store patiently wherever it asks it: an outage of seconds fails no entry."""

import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from impart_core import tinyzoo
from impart_core.base import retry
from impart_core.base.errors import StoreUnreachableError
from impart_core.engine.evaluate import evaluate_model
from impart_core.engine.executor import ThreadExecutor
from impart_core.engine.zoo import run_zoo
from impart_core.engine.zoo_jobs import ZooRequest
from impart_core.storage.folder import FolderObjects
from impart_core.zoo.file import parse_zoo

ASKED = ("put", "create", "replace", "read", "size", "fetch", "exists", "names", "find", "now")
SOURCES = str(Path(retry.__file__).parents[1])


def place_of_call() -> tuple[tuple[str, int], ...]:
    """Return from where in the program the store is asked: file and line of all callers."""
    frame: Any = sys._getframe(2)
    found = []
    while frame is not None:
        if frame.f_code.co_filename.startswith(SOURCES):
            found.append((Path(frame.f_code.co_filename).name, frame.f_lineno))
        frame = frame.f_back
    return tuple(found)


@pytest.fixture
def failed(monkeypatch: pytest.MonkeyPatch) -> set[tuple[tuple[str, int], ...]]:
    """Have each place of the program that asks the store fail the first time; the places that did."""
    places: set[tuple[tuple[str, int], ...]] = set()

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(real)
        def ask(*args: Any, **kwargs: Any) -> Any:
            place = place_of_call()
            if place not in places:
                places.add(place)
                raise StoreUnreachableError(f"It is away: {place}")
            return real(*args, **kwargs)

        return ask

    for name in ASKED:
        monkeypatch.setattr(FolderObjects, name, failing(getattr(FolderObjects, name)))
    # A measurement is one piece of work with many requests; each of its few retries gets it further by one.
    monkeypatch.setattr(evaluate_model, "policy", retry.NETWORK)
    monkeypatch.setattr(retry, "time", SimpleNamespace(sleep=lambda _: None, monotonic=time.monotonic))
    return places


def test_every_request_of_a_run_may_fail_once(failed: set[Any], tmp_path: Path) -> None:
    base, math, code = (str(tinyzoo.path(name)) for name in ("base", "math", "code"))
    sources = [{"model": place, "parameters": {"weight": 0.5}} for place in (math, code)]
    merge = {"merge_method": "task_arithmetic", "base_model": base, "models": sources}
    gate = {"tasks": {"tinyzoo_code": "answer_loss"}, "errors": 0, "limit": 2, "loses": 0.01}
    steps = [{"method": "lowrank", "cr": 64}, {"method": "lowrank", "cr": 32}]
    content = {
        "store": str(tmp_path / "store"),
        "recipes": {"default": {"steps": [{"method": "lowrank", "cr": 32}]}, "gated": {"steps": steps, "gate": gate}},
        "models": [
            {"name": "math", "base": base, "finetuned": math},
            {"name": "code", "base": base, "finetuned": code, "recipe": "gated"},
        ],
        "merges": [{"name": "both", "merge": {**merge, "impart": {"compress": {"method": "lowrank", "cr": 32}}}}],
    }
    request = ZooRequest(zoo=parse_zoo(content))
    with ThreadExecutor(2) as executor:
        first = run_zoo(request, executor)
        again = run_zoo(request, executor)
    assert {one.name: one.status for one in first.outcomes} == {
        "math": "promoted",
        "code": "refused",
        "both": "promoted",
    }, [one.why for one in first.outcomes]
    assert {one.status for one in again.outcomes} == {"unchanged", "refused"}
    assert len(failed) > 30
