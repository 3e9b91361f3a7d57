"""What is retried, and how."""

import errno
from itertools import pairwise

import pytest
import torch

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
from impart_core.base.retry import GPU, NETWORK, Retried, RetryPolicy, is_transient, patiently, recording


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


@pytest.mark.parametrize("policy", [NETWORK, GPU])
def test_delays_grow_up_to_a_limit(policy: RetryPolicy) -> None:
    assert len(policy.delays) == policy.retries
    assert all(b == min(2 * a, policy.longest_delay) for a, b in pairwise(policy.delays))
    # An outage of half a minute is outlasted by every class of work.
    assert sum(policy.delays) > 60


QUICK = RetryPolicy(retries=3, first_delay=0.001, longest_delay=0.001, limit_seconds=60)


@pytest.mark.parametrize("failures", [0, 1, 3])
def test_patience_tries_again_and_notes_it(failures: int) -> None:
    left = [ConnectionError(str(number)) for number in range(failures)]

    def attempt() -> str:
        if left:
            raise left.pop(0)
        return "done"

    with recording() as ledger:
        assert patiently("publish", attempt, QUICK) == "done"
    expected = Retried(what="publish", times=failures, why=f"ConnectionError: {failures - 1}")
    assert ledger.retried == ((expected,) if failures else ())


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


def test_nothing_is_tried_again_in_a_run_that_has_failed() -> None:
    tried = []

    def attempt() -> None:
        tried.append(1)
        raise ConnectionError("gone")

    with pytest.raises(ConfigError), recording() as ledger:
        raise ConfigError("wrong")
    assert ledger.given_up
    assert not ledger.note("late", ConnectionError("gone"))
    with recording() as other, pytest.raises(ConnectionError):
        other.given_up = True
        patiently("publish", attempt, QUICK)
    assert len(tried) == 1
