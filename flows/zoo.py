"""Flow: a zoo file → every model up to date, each in a sub-flow of its own, and a report."""

from typing import Any

from prefect import Flow, tags
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from impart_core.base.numerics import default_workers
from impart_core.engine.executor import Progress
from impart_core.engine.requests import absolute
from impart_core.engine.zoo import CheckedZoo, run_zoo
from impart_core.engine.zoo_entry import EntryJob, work_on
from impart_core.engine.zoo_jobs import ZooRequest
from impart_core.zoo.record import Outcome, ZooRun
from impart_core.zoo.report import headline, markdown_report
from impart_flows.events import observed_run
from impart_flows.run_page import never_failing, page_key
from impart_flows.watchdog import TAG, close_sub_flows
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
        return work_on(job, executor, progress, str(flow_run.id or ""))

    return Flow(zoo_entry, name="zoo-entry", flow_run_name="{job.kind} {job.name}")


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
            request = request.model_copy(update={"store": absolute(request.place)})

        def each(job: EntryJob, listener: Progress) -> Outcome:
            if cluster and job.kind != "merge":
                job = job.model_copy(update={"device": zoo.device_here(job.device)})
            return entry_flow(listener, cluster).with_options(task_runner=runner)(job)

        with never_failing():
            close_sub_flows()
        with (
            observed_run(),
            tags(TAG),  # sub-flows are watched as well
            connected(zoo, request.place, zoo.device, zoo.workers) as cluster,
        ):
            run = run_zoo(
                request, PrefectExecutor(), checked=checked, each=each, progress=progress, run_id=str(flow_run.id or "")
            )
        get_run_logger().info("%s", headline(run))
        with never_failing():
            page = page_key("zoo", run.zoo)
            create_markdown_artifact(markdown_report(run), page, f"The zoo {run.zoo}, as of this run.")
        untold = notify(request.zoo.notify, run) if request.zoo.notify else ""
        if untold:
            get_run_logger().warning("%s", untold)
        return run.model_copy(update={"trouble": (*run.trouble, untold)}) if untold else run

    return Flow(zoo, name="zoo", flow_run_name="zoo {request.zoo.zoo}")


zoo = flow_of()


def run_zoo_flow(request: ZooRequest, checked: CheckedZoo | None = None, progress: Progress | None = None) -> ZooRun:
    """Run the flow in this process."""
    return flow_of(checked, progress)(request)
