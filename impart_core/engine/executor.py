"""Stages, and what runs them: threads of this process here; Prefect, and what it spreads work over, above."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextvars import copy_context
from dataclasses import dataclass
from functools import update_wrapper
from inspect import signature
from typing import Any, Generic, ParamSpec, Protocol, Self, TypeVar

from impart_core.base.numerics import default_workers
from impart_core.base.retry import RetryPolicy, patiently

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
Progress = Callable[[str, int, int, str], None]  # stage, done, total, what


@dataclass(frozen=True)
class Need:
    """What one run of a stage takes, beyond a core.

    Attributes:
        device: whether it works on the run's device, a GPU where there is one.
        memory: bytes that it takes at its peak, as `plan` counts them; 0: not worth counting.
    """

    device: bool = False
    memory: int = 0


class Stage(Generic[P, R]):
    """A function that does one piece of a run: small references in, a small reference out, safe to repeat.

    Attributes:
        name: what it is called.
        label: template of what one run of it is called, over its parameters.
        policy: how its class of work is tried again.
        need: what a run of it takes, by its arguments.
    """

    __qualname__: str

    def __init__(
        self, function: Callable[P, R], name: str, label: str, policy: RetryPolicy, need: Callable[P, Need]
    ) -> None:
        """Wrap a function at the top of a module; see `stage`."""
        update_wrapper(self, function)
        self.function, self.name, self.label, self.policy, self.need = function, name, label, policy, need

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Do it once, here."""
        return self.function(*args, **kwargs)

    def __reduce__(self) -> str:
        """Pickle it by its name, so that it can be run elsewhere."""
        return self.__qualname__

    def label_of(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """Return what a run with these arguments is called."""
        bound = signature(self.function).bind(*args, **kwargs)
        bound.apply_defaults()
        return self.label.format(**bound.arguments)


def nothing(*_: Any, **__: Any) -> Need:
    """Return the need of what a core is enough for."""
    return Need()


def stage(
    name: str, label: str, policy: RetryPolicy, need: Callable[..., Need] = nothing
) -> Callable[[Callable[P, R]], Stage[P, R]]:
    """Return the decorator of a stage; arguments as in `Stage`."""
    return lambda function: Stage(function, name, label, policy, need)


class Pending(Protocol[R_co]):
    """A stage that was submitted."""

    def result(self) -> R_co:
        """Wait until it is done and return what it returned, or raise what it raised."""


class Executor(Protocol):
    """Runs stages, each tried again by its policy."""

    def at_once(self, workers: int | None) -> int:
        """Return how many stages run at once, where so many are asked for; None: as many as there is room for."""

    def run(self, stage: Stage[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a stage and return what it returns: where the caller is, unless its device is elsewhere."""

    def submit(self, stage: Stage[P, R], *args: P.args, **kwargs: P.kwargs) -> Pending[R]:
        """Start a stage on a worker."""

    def as_completed(self, pending: Iterable[Pending[R]]) -> Iterator[Pending[R]]:
        """Yield what was submitted in the order in which it gets done."""


class ThreadExecutor:
    """Runs stages in threads of this process; a context manager."""

    def __init__(self, workers: int | None = None) -> None:
        """Make the threads: so many, by default one for each core."""
        self._pool = ThreadPoolExecutor(workers or default_workers(), thread_name_prefix="impart")

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Cancel what has not begun, and wait for the rest."""
        self._pool.shutdown(cancel_futures=True)

    def at_once(self, workers: int | None) -> int:
        """Return how many stages run at once: one on each core where it is not said."""
        return workers or default_workers()

    def run(self, stage: Stage[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a stage in this thread."""
        return patiently(stage.label_of(*args, **kwargs), lambda: stage(*args, **kwargs), stage.policy)

    def submit(self, stage: Stage[P, R], *args: P.args, **kwargs: P.kwargs) -> Pending[R]:
        """Start a stage in a thread, in a copy of this context."""
        context = copy_context()
        return self._pool.submit(context.run, lambda: self.run(stage, *args, **kwargs))

    def as_completed(self, pending: Iterable[Pending[R]]) -> Iterator[Pending[R]]:
        """Yield futures as they get done."""
        futures: list[Future[Any]] = [one for one in pending if isinstance(one, Future)]
        return as_completed(futures)
