"""A stage bound to Prefect: its retries, its name, and nothing cached."""

from collections.abc import Callable
from functools import cache
from time import monotonic
from typing import Any, ParamSpec, TypeVar, cast
from uuid import UUID

from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from impart_core.base.retry import JITTER, Ledger, RetryPolicy, current_ledger, is_transient
from impart_core.engine.executor import Stage

P = ParamSpec("P")
R = TypeVar("R")


def task_of(stage: Stage[P, R]) -> Task[P, R]:
    """Return the task that runs a stage, the same each time.

    Prefect's own result cache stays off: the artifact store decides what exists, and each stage asks it. There
    is no task time-out: a worker thread cannot be interrupted, so that one would only fail finished work.
    """
    return cast("Task[P, R]", _task_of(stage))


@cache
def _task_of(stage: Stage[..., Any]) -> Task[..., Any]:
    return Task(
        stage.function,
        name=stage.name,
        task_run_name=stage.label,
        retries=stage.policy.retries,
        retry_delay_seconds=stage.policy.delays,
        retry_jitter_factor=JITTER,
        retry_condition_fn=_condition(stage.policy),
        cache_policy=NO_CACHE,
        persist_result=False,
    )


def _condition(policy: RetryPolicy) -> Callable[[Task[..., Any], TaskRun, State[Any]], bool]:
    failed_first: dict[tuple[Ledger, UUID], float] = {}

    def retry_if_transient(_task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
        try:
            state.result()
        except BaseException as error:  # whatever the task raised, Ctrl-C included
            ledger = current_ledger()
            began = failed_first.setdefault((ledger, run.id), monotonic())
            if monotonic() - began > policy.limit_seconds or not is_transient(error):
                return False
            return ledger.note(run.name, error)
        return False

    return retry_if_transient
