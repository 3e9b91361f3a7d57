"""OpenLineage events of a flow run and of the artifacts that it made or found.

Nothing is sent, and nothing of OpenLineage is loaded, unless the user configured a receiver.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from uuid import uuid5

from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging import get_run_logger
from prefect.logging.handlers import APILogHandler

from impart_core.lineage.events import (
    Dataset,
    Event,
    EventType,
    artifact_dataset,
    checkpoint_dataset,
    end_of,
    events_of,
)
from impart_core.store.catalog import CatalogEntry
from impart_tasks.receiver import Receiver, is_configured


class Observation:
    """What a flow run that is observed reads and makes, to be told at its end.

    Attributes:
        sent: how many events were sent; right once the run has ended.
        lost: how many were not.
    """

    def __init__(self, send: Callable[[Event], None] | None = None, flow: Event | None = None) -> None:
        """Begin with nothing; `send` takes events of the run whose start is `flow`, None: it is not observed."""
        self.sent = self.lost = 0
        self._send, self._flow = send, flow
        self._outputs: list[Dataset] = []
        self._made: list[tuple[tuple[CatalogEntry, ...], tuple[str, ...], str, frozenset[str]]] = []

    def tell(
        self, entries: Iterable[CatalogEntry], sources: Sequence[str], store: str, made: Iterable[str] = ()
    ) -> None:
        """Enter artifacts that the run made or found; the last is what it was run for. Arguments as in `events_of`."""
        self._made.append((tuple(entries), tuple(sources), store, frozenset(made)))

    @contextmanager
    def job(self, name: str, inputs: Callable[[], Iterable[Dataset]]) -> Iterator[Callable[..., None]]:
        """Send the start and the end of a job of the run, which is what the block does.

        Args:
            name: the job's name, the same in every run.
            inputs: returns what it reads; it is not called where nobody listens.

        Yields:
            A function that takes what the job made: its outputs, and those among them that are the run's as well.
        """
        outputs: list[Dataset] = []

        def made(found: Iterable[Dataset], promoted: Iterable[Dataset] = ()) -> None:
            outputs.extend((*found, *promoted))
            self._outputs.extend(promoted)

        if self._send is None or self._flow is None:
            yield made
            return
        flow = self._flow
        read = tuple(inputs())

        def event(kind: EventType, error: str | None = None, outputs: Iterable[Dataset] = ()) -> Event:
            about = (uuid5(flow.run, name), name, (flow.run, flow.job), read, tuple(outputs), error)
            return Event(kind, "FLOW", *about)

        self._send(event("START"))
        try:
            yield made
        except BaseException as error:
            end, message = end_of(error)
            self._send(event(end, message))
            raise
        self._send(event("COMPLETE", outputs=outputs))

    def events(self, flow: Event) -> Iterator[Event]:
        """Return the events of all artifacts, then the end of the run, given its start."""
        inputs: dict[Dataset, None] = {}
        outputs = list(self._outputs)
        for entries, sources, store, made in self._made:
            yield from events_of(entries, sources, store, (flow.run, flow.job), made)
            inputs |= dict.fromkeys(map(checkpoint_dataset, sources))
            top = entries[-1]
            outputs.append(artifact_dataset(store, top.id, top.kind, top.bytes, top.id not in made))
        yield Event("COMPLETE", "FLOW", flow.run, flow.job, inputs=tuple(inputs), outputs=tuple(outputs))


class _RunLog(APILogHandler):
    """Sends what the library warns of to the log of the run that it happens in; threads of no run are not its own."""

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record."""
        if FlowRunContext.get() or TaskRunContext.get():
            super().emit(record)


@contextmanager
def observed_run() -> Iterator[Observation]:
    """Send the start and the end of the flow run around the block, and what it made; log what is warned of."""
    library, log = logging.getLogger("impart_core"), _RunLog(logging.WARNING)
    library.addHandler(log)
    try:
        with _observed_run() as seen:
            yield seen
    finally:
        library.removeHandler(log)


@contextmanager
def _observed_run() -> Iterator[Observation]:
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or not is_configured():
        yield Observation()
        return
    name = context.flow.name if context.flow else context.flow_run.name
    event = partial(Event, kind="FLOW", run=context.flow_run.id, job=name)
    receiver, start = Receiver(), event("START")
    receiver.send(start)
    seen = Observation(receiver.send, start)
    try:
        yield seen
    except BaseException as error:
        end, message = end_of(error)
        receiver.send(event(end, error=message))
        raise
    else:
        for made in seen.events(start):
            receiver.send(made)
    finally:
        receiver.close()
        seen.sent, seen.lost = receiver.sent, receiver.lost
        if complaint := receiver.complaint():
            get_run_logger().warning(complaint)
