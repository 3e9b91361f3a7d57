"""OpenLineage's library: its client, kept quiet, and events in its classes. Loaded only to send."""

import logging
import os

import attr
from openlineage.client import OpenLineageClient, set_producer
from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
from openlineage.client.facet_v2 import (
    DatasetFacet,
    JobFacet,
    RunFacet,
    dataset_version_dataset,
    error_message_run,
    job_type_job,
    parent_run,
)

from impart_core import __version__
from impart_core.lineage.events import Dataset, Event

NAMESPACE = "impart"
_SILENT = logging.NullHandler()


@attr.define
class ArtifactDatasetFacet(DatasetFacet):
    """What is known of an artifact: its kind, its bytes, and whether it was there before the run."""

    kind: str
    bytes: int | None
    cached: bool | None


def connect(thread: str) -> OpenLineageClient | None:
    """Return a client of the configured receiver; None where what is configured is none after all.

    Args:
        thread: name of the thread that sends, whose failures the libraries are not to log.
    """
    set_producer(f"urn:impart:{__version__}")
    _silence(thread)
    before = set(os.environ)
    client = OpenLineageClient()
    # The client leaves copies of OPENLINEAGE_URL and of the key behind, which outlive a change of the originals.
    for name in set(os.environ) - before:
        if name.startswith("OPENLINEAGE__"):
            del os.environ[name]
    # Without a transport in its settings the library would print; a console is no receiver of ours.
    return None if client.transport.kind in ("console", "noop") else client


def _silence(thread: str) -> None:
    """Keep the libraries' logs of failures off the screen, where settings with keys would be among them."""
    ours = logging.getLogger("openlineage")
    ours.addHandler(_SILENT)
    ours.propagate = False
    logging.getLogger("urllib3.connectionpool").addFilter(lambda record: record.threadName != thread)


def run_event(event: Event) -> RunEvent:
    """Return an event as OpenLineage's library sends it."""
    kind: JobFacet = job_type_job.JobTypeJobFacet(processingType="BATCH", integration="IMPART", jobType=event.kind)
    facets: dict[str, RunFacet] = {}
    if event.parent:
        run, name = event.parent
        parent = parent_run.Job(namespace=NAMESPACE, name=name)
        facets["parent"] = parent_run.ParentRunFacet(run=parent_run.Run(runId=str(run)), job=parent)
    if event.error is not None:
        facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(event.error, programmingLanguage="PYTHON")
    return RunEvent(
        eventType=RunState(event.type),
        eventTime=event.time.isoformat(),
        run=Run(runId=str(event.run), facets=facets),
        job=Job(namespace=NAMESPACE, name=event.job, facets={"jobType": kind}),
        inputs=[InputDataset(found.namespace, found.name, facets=_facets(found)) for found in event.inputs],
        outputs=[OutputDataset(found.namespace, found.name, facets=_facets(found)) for found in event.outputs],
    )


def _facets(dataset: Dataset) -> dict[str, DatasetFacet]:
    if dataset.version is not None:
        return {"version": dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=dataset.version)}
    if dataset.kind is None:
        return {}
    return {"impart_artifact": ArtifactDatasetFacet(dataset.kind, dataset.bytes, dataset.cached)}
