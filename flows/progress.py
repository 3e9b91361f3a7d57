"""Progress that a flow reports to whoever runs it in this process; silent when nobody listens."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[str, int, int, str], None]

_listener: ContextVar[Listener | None] = ContextVar("impart_progress", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Send the progress of flows that run inside the block to a listener (stage, done, total, what)."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def report(stage: str, done: int, total: int, what: str = "") -> None:
    """Tell the listener, if any, that `done` of `total` pieces of a stage are finished."""
    listener = _listener.get()
    if listener:
        listener(stage, done, total, what)
