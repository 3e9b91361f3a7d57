"""Runs the engine's stages as Prefect tasks of the flow run that it is used in."""

from collections.abc import Iterable, Iterator
from typing import Any, Generic, ParamSpec, TypeVar, cast

from prefect.futures import as_completed

from impart_core.base.errors import ClusterError
from impart_core.base.numerics import default_workers
from impart_core.engine.executor import Pending, Stage
from impart_tasks.cluster import Cluster
from impart_tasks.remote import Done, unpack
from impart_tasks.stage import task_of

P = ParamSpec("P")
R = TypeVar("R")


class PrefectExecutor:
    """Runs stages as tasks: in threads, by the flow's task runner, or on a cluster."""

    def __init__(self, cluster: Cluster | None = None) -> None:
        """Take the cluster, if there is one."""
        self._cluster = cluster

    def at_once(self, workers: int | None) -> int:
        """Return how many stages run at once: of what is not said, one on each core."""
        return workers or (self._cluster.slots if self._cluster else default_workers())

    def run(self, stage: Stage[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a stage as a task in this thread; one that needs a device, on the cluster."""
        if self._cluster and stage.need(*args, **kwargs).device:
            return self.submit(stage, *args, **kwargs).result()
        return task_of(stage)(*args, **kwargs)

    def submit(self, stage: Stage[P, R], *args: P.args, **kwargs: P.kwargs) -> Pending[R]:
        """Submit a task to the flow's task runner, or to the cluster."""
        if self._cluster:
            return _Sent(self._cluster.submit(stage, args, kwargs), self._cluster)
        return task_of(stage).submit(*args, **kwargs)

    def as_completed(self, pending: Iterable[Pending[R]]) -> Iterator[Pending[R]]:
        """Yield tasks as they get done."""
        submitted: list[Any] = list(pending)
        if self._cluster is None:
            yield from as_completed(submitted)
            return
        sent = {one.future: one for one in submitted}
        yield from (sent[future] for future in as_completed(list(sent)))


class _Sent(Generic[R]):
    """A stage that was sent to a cluster."""

    def __init__(self, future: Any, cluster: Cluster) -> None:
        self.future, self._cluster = future, cluster
        self._done: Done | None = None

    def result(self) -> R:
        """Wait for what came of it, and tell once what was tried again and warned of."""
        if self._done is None:
            try:
                packed = self.future.result()
            except self._cluster.trouble as error:
                raise ClusterError(
                    f"The cluster gave a task up: {type(error).__name__}: {' '.join(str(error).split())[:300]}. "
                    "Finished blocks are kept; run the same command again to go on."
                ) from error
            self._done = unpack(packed)
            self._done.tell()
        return cast("R", self._done.value)
