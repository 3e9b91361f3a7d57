"""Pieces of one task side by side, in threads; what comes out does not depend on how many there are."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from threading import RLock
from typing import TypeVar

from impart_core.base.numerics import one_thread_per_kernel

T = TypeVar("T")
R = TypeVar("R")

_at_once: ContextVar[int] = ContextVar("at_once", default=1)  # new threads begin with 1, so that nothing is nested

_making_a_model = RLock()


@contextmanager
def making_a_model() -> Iterator[None]:
    """Let one thread of this process at a time have transformers make a model.

    transformers and accelerate change for that time what all threads share: the default dtype, the initialisers of
    torch, and how modules keep parameters. Two at once fail, or leave parameters without values.
    """
    with _making_a_model:
        yield


@contextmanager
def at_once(count: int) -> Iterator[None]:
    """Let this thread's `in_order` work on so many pieces at once inside the block; outside of any it is one."""
    before = _at_once.set(count)
    try:
        yield
    finally:
        _at_once.reset(before)


def in_order(work: Callable[[T], R], pieces: Iterable[T]) -> Iterator[R]:
    """Yield what becomes of each piece, in their order, with one thread for each kernel.

    Pieces are taken in the caller's thread, one after the other, and as many are under way or done as `at_once` says.

    Args:
        work: what to do; must not depend on what becomes of other pieces.
        pieces: what to do it with.
    """
    count = _at_once.get()
    if count == 1:
        yield from map(work, pieces)
        return
    pool, under_way = ThreadPoolExecutor(count), deque[Future[R]]()
    try:
        for piece in pieces:
            under_way.append(pool.submit(_alone, work, piece))
            if len(under_way) == count:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _alone(work: Callable[[T], R], piece: T) -> R:
    with one_thread_per_kernel():
        return work(piece)
