"""What is retried, and how."""

import errno
import time
from itertools import pairwise
from uuid import UUID, uuid4

import pytest
import torch
from prefect.client.schemas.objects import State, StateType, TaskRun
from prefect.states import Completed

from impart_core.base.errors import (
    CheckpointError,
    ConfigError,
    ImpartError,
    StoreDeniedError,
    StoreError,
    StoreFullError,
    StoreUnreachableError,
    TensorValueError,
    UnreachableError,
)
from impart_tasks.resources import (
    CPU,
    GPU,
    NETWORK,
    Retried,
    RetryPolicy,
    give_up,
    is_transient,
    patiently,
    retried_in,
    stage,
)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError("gone"),
        TimeoutError("late"),
        BrokenPipeError("gone"),
        OSError(errno.EIO, "input/output error"),
        OSError(errno.ESTALE, "stale handle"),
        BlockingIOError(errno.EAGAIN, "busy"),
        UnreachableError("s3://a/b cannot be reached"),
        StoreUnreachableError("the store cannot be reached"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_what_may_pass_by_itself_is_tried_again(error: Exception) -> None:
    assert is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("wrong"),
        TensorValueError("NaN"),
        StoreError("refused"),
        StoreDeniedError("wrong key"),
        StoreFullError("full"),
        ImpartError("any"),
        CheckpointError("s3://a/b does not exist"),
        OSError(errno.ENOSPC, "full"),
        OSError(errno.EACCES, "refused"),
        FileNotFoundError(errno.ENOENT, "gone"),
        OSError("without a number"),
        ValueError("bug"),
        MemoryError(),
        KeyboardInterrupt(),
        SystemExit(1),
    ],
)
def test_what_repeats_itself_is_not_tried_again(error: BaseException) -> None:
    assert not is_transient(error)


@pytest.mark.parametrize("policy", [NETWORK, CPU, GPU])
def test_a_stage_retries_as_its_class_of_work_says_and_caches_nothing_itself(policy: RetryPolicy) -> None:
    @stage("work", "work {number}", policy)
    def work(number: int) -> int:
        return number + 1

    assert work.fn(1) == 2
    assert (work.name, work.task_run_name, work.retries) == ("work", "work {number}", policy.retries)
    assert work.retry_delay_seconds == policy.delays
    assert work.retry_jitter_factor == 0.5
    assert work.persist_result is False


@pytest.mark.parametrize("policy", [NETWORK, CPU, GPU])
def test_delays_grow_up_to_a_limit(policy: RetryPolicy) -> None:
    assert len(policy.delays) == policy.retries
    assert all(b == min(2 * a, policy.longest_delay) for a, b in pairwise(policy.delays))
    # An outage of half a minute is outlasted by every class of work.
    assert sum(policy.delays) > 60


def failed(error: BaseException) -> State[object]:
    return State(type=StateType.FAILED, data=error)


def run_of(flow_run: UUID) -> TaskRun:
    return TaskRun(id=uuid4(), task_key="work", dynamic_key="0", flow_run_id=flow_run, name="work 1", run_count=1)


@stage("work", "work", RetryPolicy(retries=3, first_delay=0, longest_delay=0, limit_seconds=60))
def work() -> None: ...


def may_retry(run: TaskRun, state: State[object]) -> bool:
    assert work.retry_condition_fn is not None
    return bool(work.retry_condition_fn(work, run, state))


def test_a_stages_retry_condition_reads_the_tasks_state_and_notes_what_is_tried_again() -> None:
    flow_run = uuid4()
    run = run_of(flow_run)
    for _ in range(2):  # whoever sends events asks, too
        assert may_retry(run, failed(ConnectionError("gone")))
    run.run_count = 2
    assert may_retry(run, failed(ConnectionError("gone again")))
    assert not may_retry(run, failed(ConfigError("wrong")))
    assert not may_retry(run, Completed(data=None))
    assert retried_in(flow_run) == (Retried(what="work 1", times=2, why="ConnectionError: gone again"),)
    assert retried_in(flow_run) == ()


def test_nothing_is_tried_again_after_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(uuid4())
    now = time.monotonic()
    monkeypatch.setattr("impart_tasks.resources.time.monotonic", lambda: now)
    assert may_retry(run, failed(ConnectionError("gone")))
    now += 59
    assert may_retry(run, failed(ConnectionError("gone")))
    now += 2
    assert not may_retry(run, failed(ConnectionError("gone")))


def test_nothing_is_tried_again_in_a_run_that_has_given_up() -> None:
    flow_run = uuid4()
    give_up(flow_run)
    assert not may_retry(run_of(flow_run), failed(ConnectionError("gone")))
    assert may_retry(run_of(uuid4()), failed(ConnectionError("gone")))


QUICK = RetryPolicy(retries=3, first_delay=0.001, longest_delay=0.001, limit_seconds=60)


@pytest.mark.parametrize("failures", [0, 1, 3])
def test_patience_tries_again_and_notes_it(failures: int) -> None:
    left = [ConnectionError(str(number)) for number in range(failures)]
    retried_in(None)

    def attempt() -> str:
        if left:
            raise left.pop(0)
        return "done"

    assert patiently("publish", attempt, QUICK) == "done"
    noted = retried_in(None)
    expected = Retried(what="publish", times=failures, why=f"ConnectionError: {failures - 1}")
    assert noted == ((expected,) if failures else ())


@pytest.mark.parametrize(
    ("error", "policy", "attempts"),
    [
        (ConnectionError("gone"), QUICK, 4),
        (ConfigError("wrong"), QUICK, 1),
        (ConnectionError("gone"), QUICK.model_copy(update={"limit_seconds": -1}), 1),
    ],
)
def test_patience_ends(error: Exception, policy: RetryPolicy, attempts: int) -> None:
    tried = []

    def attempt() -> None:
        tried.append(1)
        raise error

    with pytest.raises(type(error)):
        patiently("publish", attempt, policy)
    assert len(tried) == attempts
    retried_in(None)
