"""Stages as Prefect tasks: what is retried, how it is noted, and that nothing is cached."""

import time
from collections.abc import Iterator
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import State, StateType, TaskRun
from prefect.states import Completed

from impart_core.base.errors import ConfigError
from impart_core.base.retry import GPU, NETWORK, Ledger, Retried, RetryPolicy, recording
from impart_core.engine import chain, evaluate, foretell, stages
from impart_core.engine.executor import Stage, stage
from impart_tasks.stage import task_of


@stage("work", "work {number}", RetryPolicy(retries=3, first_delay=0, longest_delay=0, limit_seconds=60))
def work(number: int) -> int:
    """Do some work."""
    return number + 1


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    """The ledger of the test's run."""
    with recording() as ours:
        yield ours


ALL = [one for module in (stages, chain, evaluate, foretell) for one in vars(module).values() if isinstance(one, Stage)]


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_a_stage_retries_as_its_class_of_work_says_and_caches_nothing_itself(one: Stage[..., object]) -> None:
    task = task_of(one)
    assert one.policy in (NETWORK, GPU)
    assert (task.name, task.task_run_name, task.retries) == (one.name, one.label, one.policy.retries)
    assert task.retry_delay_seconds == one.policy.delays
    assert task.retry_jitter_factor == 0.5
    assert task.persist_result is False
    assert task_of(one) is task


def failed(error: BaseException) -> State[object]:
    return State(type=StateType.FAILED, data=error)


def run_of() -> TaskRun:
    return TaskRun(id=uuid4(), task_key="work", dynamic_key="0", flow_run_id=uuid4(), name="work 1", run_count=1)


def may_retry(run: TaskRun, state: State[object]) -> bool:
    task = task_of(work)
    assert task.retry_condition_fn is not None
    return bool(task.retry_condition_fn(task, run, state))


def test_the_retry_condition_reads_the_tasks_state_and_notes_what_is_tried_again(ledger: Ledger) -> None:
    run = run_of()
    assert may_retry(run, failed(ConnectionError("gone")))
    run.run_count = 2
    assert may_retry(run, failed(ConnectionError("gone again")))
    assert not may_retry(run, failed(ConfigError("wrong")))
    assert not may_retry(run, Completed(data=None))
    assert ledger.retried == (Retried(what="work 1", times=2, why="ConnectionError: gone again"),)


def test_nothing_is_tried_again_after_the_limit(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    run, now = run_of(), time.monotonic()
    monkeypatch.setattr("impart_tasks.stage.monotonic", lambda: now)
    assert may_retry(run, failed(ConnectionError("gone")))
    now += 59
    assert may_retry(run, failed(ConnectionError("gone")))
    now += 2
    assert not may_retry(run, failed(ConnectionError("gone")))


def test_nothing_is_tried_again_in_a_run_that_has_given_up(ledger: Ledger) -> None:
    ledger.given_up = True
    assert not may_retry(run_of(), failed(ConnectionError("gone")))
