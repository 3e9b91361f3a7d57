"""Retries, one policy for each class of work. What is retried is only what may pass by itself."""

import errno
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from impart_core.base.device_memory import is_out_of_device_memory
from impart_core.base.settings import Frozen

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
JITTER = 0.5


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
# A block is computed again from its beginning. Another process may hold the device's memory: it is given longer to
# end, and fewer chances.
GPU = RetryPolicy(retries=5, first_delay=5, longest_delay=60, limit_seconds=300)


class Retried(Frozen):
    """One piece of work that was tried again: how often, and why the last time."""

    what: str
    times: int
    why: str


class Ledger:
    """What was tried again in one run."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._lock = threading.Lock()
        self._retried: dict[str, Retried] = {}
        self.given_up = False

    @property
    def retried(self) -> tuple[Retried, ...]:
        """All that was tried again so far."""
        with self._lock:
            return tuple(self._retried.values())

    def note(self, what: str, error: BaseException) -> bool:
        """Note that a piece of work is about to be tried again; return whether it may be."""
        with self._lock:
            if self.given_up:
                return False
            times = self._retried[what].times if what in self._retried else 0
            self._retried[what] = Retried(what=what, times=times + 1, why=f"{type(error).__name__}: {error}")
            return True

    def take(self, retried: Iterable[Retried]) -> None:
        """Enter what a machine that worked for this run has tried again."""
        with self._lock:
            for one in retried:
                before = self._retried[one.what].times if one.what in self._retried else 0
                self._retried[one.what] = one.model_copy(update={"times": before + one.times})


# Retries happen deep inside of stages, in threads that run the context of the run that started them: a ledger in every
# signature on the way would say nothing else.
_ledger: ContextVar[Ledger | None] = ContextVar("impart_ledger", default=None)


@contextmanager
def recording() -> Iterator[Ledger]:
    """Keep the ledger of a run: of the block, and of threads that copy its context.

    Once the block ends by an error nothing more is tried again, so that no thread of the run outlasts an outage.
    """
    ledger = Ledger()
    token = _ledger.set(ledger)
    try:
        yield ledger
    except BaseException:
        ledger.given_up = True
        raise
    finally:
        _ledger.reset(token)


def current_ledger() -> Ledger:
    """Return the ledger of the run that this code is part of; outside of any, one that nobody reads."""
    return _ledger.get() or Ledger()


def is_transient(error: BaseException) -> bool:
    """Return whether trying again may help: a connection, a time-out, an I/O error; never wrong input.

    What a device has too little memory for may go well once another process gives some back.
    """
    if isinstance(error, (ConnectionError, TimeoutError)) or is_out_of_device_memory(error):
        return True
    return isinstance(error, OSError) and error.errno in _TRANSIENT


def patiently(what: str, work: Callable[[], R], policy: RetryPolicy = NETWORK) -> R:
    """Do a piece of work, and again after a failure that may pass.

    Args:
        what: the work in a few words, for the run's report.
        work: what to do; must be safe to repeat.
        policy: how often and for how long.
    """
    ledger, began = current_ledger(), None
    for delay in [*policy.delays, None]:
        try:
            return work()
        except Exception as error:
            began = began or time.monotonic()
            late = time.monotonic() - began > policy.limit_seconds
            if delay is None or late or not is_transient(error) or not ledger.note(what, error):
                raise
        time.sleep(delay * (1 + JITTER * random.random()))  # noqa: S311 - spreads load, guards nothing
    raise AssertionError
