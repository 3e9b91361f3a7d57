"""Retries, one policy for each class of work. What is retried is only what may pass by itself."""

import errno
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

from impart_tasks.events import observed
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext, TaskRunContext
from prefect.tasks import Task

from impart_core.base.numerics import is_out_of_device_memory
from impart_core.base.settings import Frozen

P = ParamSpec("P")
R = TypeVar("R")

# Operating-system errors that come with load or a network and go away: everything else repeats itself.
_TRANSIENT = {
    errno.EAGAIN,
    errno.EINTR,
    errno.EIO,
    errno.ETIMEDOUT,
    errno.ECONNRESET,
    errno.ECONNREFUSED,
    errno.ECONNABORTED,
    errno.EPIPE,
    errno.ESTALE,
}
_JITTER = 0.5


class RetryPolicy(Frozen):
    """How one class of work is tried again.

    Attributes:
        retries: at most how often.
        first_delay: seconds before the first retry; each later one waits twice as long.
        longest_delay: but no longer than this.
        limit_seconds: nothing is tried again this long after the first failure.
    """

    retries: int
    first_delay: float
    longest_delay: float
    limit_seconds: float

    @property
    def delays(self) -> list[float]:
        """The seconds before each retry; up to half as much is added at random, so that workers spread out."""
        return [min(self.first_delay * 2**number, self.longest_delay) for number in range(self.retries)]


# Reading and writing stores and checkpoints costs little to repeat, and outages take minutes.
NETWORK = RetryPolicy(retries=20, first_delay=1, longest_delay=30, limit_seconds=600)
# A block is computed again from its beginning.
CPU = RetryPolicy(retries=8, first_delay=2, longest_delay=30, limit_seconds=300)
# Another process may hold the device's memory: it is given longer to end, and fewer chances.
GPU = RetryPolicy(retries=5, first_delay=5, longest_delay=60, limit_seconds=300)


class Retried(Frozen):
    """One piece of work that was tried again: how often, and why the last time."""

    what: str
    times: int
    why: str


@dataclass
class _FlowRun:
    retried: dict[str, Retried] = field(default_factory=dict)
    failed_first: dict[UUID, float] = field(default_factory=dict)
    noted: set[tuple[UUID, int]] = field(default_factory=set)
    given_up: bool = False


_lock = threading.Lock()
_runs: dict[UUID | None, _FlowRun] = defaultdict(_FlowRun)


def is_transient(error: BaseException) -> bool:
    """Return whether trying again may help: a connection, a time-out, an I/O error; never wrong input."""
    if isinstance(error, (ConnectionError, TimeoutError)) or is_out_of_device_memory(error):
        return True
    return isinstance(error, OSError) and error.errno in _TRANSIENT


def retried_in(flow_run: UUID | None) -> tuple[Retried, ...]:
    """Return what was tried again in a flow run of this process, and forget it."""
    with _lock:
        return tuple(_runs.pop(flow_run, _FlowRun()).retried.values())


def give_up(flow_run: UUID | None) -> None:
    """Let nothing more be tried again in a flow run that is ending, so that it does not outlast an outage."""
    with _lock:
        _runs[flow_run].given_up = True


def patiently(what: str, work: Callable[[], R], policy: RetryPolicy = NETWORK) -> R:
    """Do a piece of work, and again after a failure that may pass: where a whole task is too much to repeat.

    Args:
        what: the work in a few words, for the run's report.
        work: what to do; must be safe to repeat.
        policy: how often and for how long.
    """
    flow_run, began = current_flow_run(), None
    for delay in [*policy.delays, None]:
        try:
            return work()
        except Exception as error:
            began = began or time.monotonic()
            late = time.monotonic() - began > policy.limit_seconds
            if delay is None or late or not is_transient(error) or not _note(flow_run, what, error):
                raise
        time.sleep(delay * (1 + _JITTER * random.random()))  # noqa: S311 - spreads load, guards nothing
    raise AssertionError


def current_flow_run() -> UUID | None:
    """Return the id of the flow run that this code runs in, if any."""
    task = TaskRunContext.get()
    if task and task.task_run.flow_run_id:
        return task.task_run.flow_run_id
    flow = FlowRunContext.get()
    return flow.flow_run.id if flow and flow.flow_run else None


def _note(flow_run: UUID | None, what: str, error: BaseException) -> bool:
    """Note that a piece of work is about to be tried again; return whether it may be."""
    with _lock:
        run = _runs[flow_run]
        if run.given_up:
            return False
        times = run.retried[what].times if what in run.retried else 0
        run.retried[what] = Retried(what=what, times=times + 1, why=f"{type(error).__name__}: {error}")
        return True


def _condition(policy: RetryPolicy) -> Callable[[Task[..., Any], TaskRun, State[Any]], bool]:
    def retry_if_transient(_task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
        try:
            state.result()
        except BaseException as error:  # whatever the task raised, Ctrl-C included
            with _lock:
                of = _runs[run.flow_run_id]
                began = of.failed_first.setdefault(run.id, time.monotonic())
                again = (run.id, run.run_count) in of.noted  # whoever sends events asks, too
            if time.monotonic() - began > policy.limit_seconds or not is_transient(error):
                return False
            if again:
                return not of.given_up
            of.noted.add((run.id, run.run_count))
            return _note(run.flow_run_id, run.name, error)
        return False

    return retry_if_transient


def stage(name: str, run_name: str, policy: RetryPolicy = CPU) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Return the decorator of a stage.

    Prefect's own result cache stays off: the artifact store decides what exists, and each stage asks it. There
    is no task time-out: a worker thread cannot be interrupted, so that one would only fail finished work.

    Args:
        name: the task's name.
        run_name: template of its runs' names over the task's parameters.
        policy: how its class of work is tried again.
    """

    def decorate(function: Callable[P, R]) -> Task[P, R]:
        return Task(
            observed(function),
            name=name,
            task_run_name=run_name,
            retries=policy.retries,
            retry_delay_seconds=policy.delays,
            retry_jitter_factor=_JITTER,
            retry_condition_fn=_condition(policy),
            cache_policy=NO_CACHE,
            persist_result=False,
        )

    return decorate
