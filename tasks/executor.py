"""Runs the engine's stages as Prefect tasks of the flow run that it is used in."""

from collections.abc import Iterable, Iterator
from typing import Any, ParamSpec, TypeVar

from prefect.futures import as_completed

from impart_core.engine.executor import Pending, Stage
from impart_tasks.stage import task_of

P = ParamSpec("P")
R = TypeVar("R")


class PrefectExecutor:
    """Runs stages as tasks; where they run is up to the flow's task runner."""

    def run(self, stage: Stage[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a stage as a task in this thread."""
        return task_of(stage)(*args, **kwargs)

    def submit(self, stage: Stage[P, R], *args: P.args, **kwargs: P.kwargs) -> Pending[R]:
        """Submit a task to the flow's task runner."""
        return task_of(stage).submit(*args, **kwargs)

    def as_completed(self, pending: Iterable[Pending[R]]) -> Iterator[Pending[R]]:
        """Yield tasks as they get done."""
        futures: list[Any] = list(pending)
        return iter(as_completed(futures))
