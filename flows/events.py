"""OpenLineage events of a flow run and of the artifacts that it made or found.

Nothing is sent, and nothing of OpenLineage is loaded, unless the user configured a receiver.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from prefect.context import FlowRunContext
from prefect.logging import get_run_logger

from impart_core.lineage.events import Dataset, Event, artifact_dataset, checkpoint_dataset, end_of, events_of
from impart_core.store.catalog import CatalogEntry
from impart_tasks.receiver import Receiver, is_configured


class Observation:
    """What a flow run that is observed reads and makes, to be told at its end.

    Attributes:
        sent: how many events were sent; right once the run has ended.
        lost: how many were not.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.sent = self.lost = 0
        self._made: list[tuple[tuple[CatalogEntry, ...], tuple[str, ...], str, frozenset[str]]] = []

    def tell(
        self, entries: Iterable[CatalogEntry], sources: Sequence[str], store: str, made: Iterable[str] = ()
    ) -> None:
        """Enter artifacts that the run made or found; the last is what it was run for. Arguments as in `events_of`."""
        self._made.append((tuple(entries), tuple(sources), store, frozenset(made)))

    def events(self, flow: Event) -> Iterator[Event]:
        """Return the events of all artifacts, then the end of the run, given its start."""
        inputs: dict[Dataset, None] = {}
        outputs: list[Dataset] = []
        for entries, sources, store, made in self._made:
            yield from events_of(entries, sources, store, (flow.run, flow.job), made)
            inputs |= dict.fromkeys(map(checkpoint_dataset, sources))
            top = entries[-1]
            outputs.append(artifact_dataset(store, top.id, top.kind, top.bytes, top.id not in made))
        yield Event("COMPLETE", "FLOW", flow.run, flow.job, inputs=tuple(inputs), outputs=tuple(outputs))


@contextmanager
def observed_run() -> Iterator[Observation]:
    """Send the start and the end of the flow run around the block, and what it made."""
    seen, context = Observation(), FlowRunContext.get()
    if context is None or context.flow_run is None or not is_configured():
        yield seen
        return
    name = context.flow.name if context.flow else context.flow_run.name
    event = partial(Event, kind="FLOW", run=context.flow_run.id, job=name)
    receiver, start = Receiver(), event("START")
    receiver.send(start)
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
