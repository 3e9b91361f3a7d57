"""What is retried, and how."""

import errno

import pytest
from prefect.client.schemas.objects import State, StateType
from prefect.states import Completed

from impart_core.errors import CheckpointError, ConfigError, ImpartError, StoreError, TensorValueError, UnreachableError
from tasks.resources import is_transient, stage


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


def test_a_stage_retries_four_times_with_growing_delays_and_caches_nothing_itself() -> None:
    @stage("work", "work {number}")
    def work(number: int) -> int:
        return number + 1

    assert work.fn(1) == 2
    assert (work.name, work.task_run_name, work.retries) == ("work", "work {number}", 4)
    assert work.retry_delay_seconds == [2, 4, 8, 16]
    assert work.retry_jitter_factor == 0.5
    assert work.persist_result is False


def test_a_stages_retry_condition_reads_the_tasks_state() -> None:
    @stage("work", "work")
    def work() -> None: ...

    def failed(error: BaseException) -> State[object]:
        return State(type=StateType.FAILED, data=error)

    condition = work.retry_condition_fn
    assert condition is not None
    assert condition(work, None, failed(ConnectionError("gone"))) is True
    assert condition(work, None, failed(ConfigError("wrong"))) is False
    assert condition(work, None, Completed(data=None)) is False
