"""Flow: a zoo file → every model up to date, each in a sub-flow of its own, and a report."""

from typing import Any

from prefect import Flow
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from impart_core.base.numerics import default_workers
from impart_core.engine.executor import Progress
from impart_core.engine.zoo import CheckedZoo, run_zoo
from impart_core.engine.zoo_entry import EntryJob, work_on
from impart_core.engine.zoo_inputs import places_of
from impart_core.engine.zoo_jobs import ZooRequest
from impart_core.lineage.events import Dataset, artifact_dataset, checkpoint_dataset, name_dataset
from impart_core.store.names import all_refs
from impart_core.store.store import Store, absolute_store
from impart_core.zoo.record import Outcome, ZooRun
from impart_core.zoo.report import headline, markdown_report
from impart_flows.events import observed_run
from impart_flows.gpu_limit import free_lost_slots, gpu_slot, limit_name, require_limit
from impart_flows.mlflow import push_run
from impart_flows.run_page import never_failing, page_key
from impart_flows.watchdog import close_earlier_runs, close_sub_flows, watched
from impart_flows.webhook import notify
from impart_tasks.cluster import Cluster, connected
from impart_tasks.executor import PrefectExecutor


def entry_flow(progress: Progress | None = None, cluster: Cluster | None = None) -> "Flow[[EntryJob], Outcome]":
    """Return the flow of one entry; a run of this process is handed who listens to its progress, and the cluster."""

    def zoo_entry(job: EntryJob) -> Outcome:
        """Compress a model until it passes its gate, or merge, or search; and promote the result.

        Raises:
            ImpartError: it cannot be done; the name stays where it was.
        """
        # A merge's tensors are computed as they are read, from all of its models: that stays in one place.
        executor = PrefectExecutor(None if job.kind == "merge" else cluster)
        with gpu_slot(job.device):
            return work_on(job, executor, progress, str(flow_run.id or ""))

    return Flow(zoo_entry, name="zoo-entry", flow_run_name="{job.kind} {job.name}")


def _inputs(job: EntryJob) -> list[Dataset]:
    """Return what an entry reads: checkpoints by their places, deltas by their names."""
    refs = {} if job.model else all_refs(Store(job.store))
    return [
        name_dataset(job.store, place, refs[place]) if place in refs else checkpoint_dataset(place)
        for place in dict.fromkeys(places_of(job))
    ]


def _outputs(job: EntryJob, outcome: Outcome) -> tuple[list[Dataset], list[Dataset]]:
    """Return what was made for an entry, and the name that was promoted."""
    made = [artifact_dataset(job.store, one.artifact, "delta", one.bytes, one.cached) for one in outcome.attempts]
    promoted = outcome.status == "promoted" and outcome.artifact
    return made, [name_dataset(job.store, outcome.ref, outcome.artifact)] if promoted else []


def _with_trouble(run: ZooRun, trouble: str) -> ZooRun:
    """Return a run with what went wrong at its end, which the log tells as well; nothing did where it is empty."""
    if not trouble:
        return run
    get_run_logger().warning("%s", trouble)
    return run.model_copy(update={"trouble": (*run.trouble, trouble)})


def flow_of(checked: CheckedZoo | None = None, progress: Progress | None = None) -> "Flow[[ZooRequest], ZooRun]":
    """Return the flow; a run of this process is handed what was checked before and who listens to its progress."""

    def zoo(request: ZooRequest) -> ZooRun:
        """Bring a zoo up to date: failures of entries are told in the report, and stop none of the others.

        Raises:
            ImpartError: the file cannot be carried out; the message says what to change.
        """
        zoo = request.zoo
        runner: Any = ThreadPoolTaskRunner(max_workers=zoo.workers or default_workers())
        if zoo.runner != "threads":
            request = request.model_copy(update={"store": absolute_store(request.place)})

        limit = limit_name(zoo.device)
        if limit:  # told before any work, and once for all entries
            require_limit(limit)
        with never_failing():
            close_earlier_runs()
            close_sub_flows()
            if limit:
                free_lost_slots(limit)
        with (
            observed_run() as seen,
            watched(),
            connected(zoo, request.place, zoo.device, zoo.workers) as cluster,
        ):

            def each(job: EntryJob, listener: Progress) -> Outcome:
                placed = job
                if cluster and job.kind != "merge":
                    placed = job.model_copy(update={"device": zoo.device_here(job.device)})
                with seen.job(f"{zoo.zoo}.{job.name}", lambda: _inputs(job)) as made:
                    outcome = entry_flow(listener, cluster).with_options(task_runner=runner)(placed)
                    made(*_outputs(job, outcome))
                return outcome

            run = run_zoo(
                request, PrefectExecutor(), checked=checked, each=each, progress=progress, run_id=str(flow_run.id or "")
            )
        get_run_logger().info("%s", headline(run))
        with never_failing():
            page = page_key("zoo", run.zoo)
            create_markdown_artifact(markdown_report(run), page, f"The zoo {run.zoo}, as of this run.")
        tracked = request.zoo.mlflow
        unregistered = push_run(run, Store(request.place), tracked.experiment) if tracked else ""
        run = _with_trouble(run, unregistered)
        return _with_trouble(run, notify(request.zoo.notify, run) if request.zoo.notify else "")

    return Flow(zoo, name="zoo", flow_run_name="zoo {request.zoo.zoo}")


zoo = flow_of()


def run_zoo_flow(request: ZooRequest, checked: CheckedZoo | None = None, progress: Progress | None = None) -> ZooRun:
    """Run the flow in this process."""
    return flow_of(checked, progress)(request)
