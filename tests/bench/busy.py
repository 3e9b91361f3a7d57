"""How long the process really works: the time that is covered by numeric kernels and file input and output.

What a pipeline adds to that is its overhead.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from time import perf_counter
from typing import Any

from impart_core.artifacts import activations, block, factors
from impart_core.blocks import decompose, encode
from impart_core.calibrate.layer import Layer
from impart_core.checkpoint import digest
from impart_core.delta import load
from impart_core.methods import METHODS
from impart_core.store import store
from impart_core.store.store import Store

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


def watch_kernels() -> None:
    """Count what a compression does in numeric kernels and in file input and output, in this process from now on."""
    for module, name in (
        (load, "load_matrix"),
        (load.Loaded, "delta"),
        (factors, "read_tensor"),
        (encode, "encode_half"),
        (encode, "require_finite"),
        (decompose, "factors_of"),
        (encode, "factors_of"),
        (block, "write_block"),
        (factors, "write_tensors"),
        (activations, "write_tensors"),
        (digest, "tensor_digest"),
        (store, "sha256_of"),
        (Store, "publish"),
        (Layer, "hessians"),
        *((METHODS.get(method), "encode") for method in METHODS),
    ):
        setattr(module, name, _counted(getattr(module, name)))


def _counted(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        with busy():
            return function(*args, **kwargs)

    return counted
