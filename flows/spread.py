"""A request as its flow carries it out: in threads, or on the cluster that it names."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from impart_core.engine.requests import CompressRequest
from impart_core.engine.search import SearchRequest
from impart_core.store.store import absolute_store
from impart_tasks.cluster import connected
from impart_tasks.executor import PrefectExecutor

RequestT = TypeVar("RequestT", CompressRequest, SearchRequest)


@contextmanager
def spread_out(request: RequestT) -> Iterator[tuple[RequestT, PrefectExecutor]]:
    """Give a request as it is meant wherever it is worked on, and what works on it.

    Raises:
        ImpartError: it cannot be spread as it asks for.
    """
    if request.runner == "threads":
        yield request, PrefectExecutor()
        return
    store = absolute_store(request.store)
    with connected(request, store, request.device, request.workers) as cluster:
        placed = {"store": store, "device": request.device_here(request.device)}
        yield request.model_copy(update=placed), PrefectExecutor(cluster)
