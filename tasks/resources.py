"""Retries, one policy for each class of work. What is retried is only what may pass by itself."""

import errno
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task, exponential_backoff

from tasks.events import observed

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


def is_transient(error: BaseException) -> bool:
    """Return whether trying again may help: a connection, a time-out, an I/O error; never wrong input."""
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    return isinstance(error, OSError) and error.errno in _TRANSIENT


def retry_if_transient(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Prefect's retry condition: see `is_transient`."""
    try:
        state.result()
    except BaseException as error:  # whatever the task raised, Ctrl-C included
        return is_transient(error)
    return False


def stage(name: str, run_name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Return the decorator of a stage.

    Prefect's own result cache stays off: the artifact store decides what exists, and each stage asks it. There
    is no task time-out: a worker thread cannot be interrupted, so that one would only fail finished work.

    Args:
        name: the task's name.
        run_name: template of its runs' names over the task's parameters.
    """

    def decorate(function: Callable[P, R]) -> Task[P, R]:
        return Task(
            observed(function),
            name=name,
            task_run_name=run_name,
            retries=4,
            retry_delay_seconds=exponential_backoff(2),
            retry_jitter_factor=0.5,
            retry_condition_fn=retry_if_transient,
            cache_policy=NO_CACHE,
            persist_result=False,
        )

    return decorate
