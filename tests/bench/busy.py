"""How long the process really works: the time that is covered by numeric kernels and file input and output.

What a pipeline adds to that is its overhead.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

_lock = threading.Lock()
_inside = 0
_since = 0.0
_total = 0.0


@contextmanager
def busy() -> Iterator[None]:
    """Count the time inside the block; blocks that overlap, in one thread or several, count once."""
    global _inside, _since, _total
    with _lock:
        if _inside == 0:
            _since = perf_counter()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _total += perf_counter() - _since


def busy_seconds() -> float:
    """Return the seconds that this process has been busy so far."""
    with _lock:
        return _total + (perf_counter() - _since if _inside else 0.0)
