"""Flow: several models → one, written to a folder or compressed again."""

from typing import Any

from prefect import Flow
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from impart_core.base.numerics import default_workers
from impart_core.engine.executor import Progress
from impart_core.engine.merge import MergeReport
from impart_core.engine.merge import merge as merge_models
from impart_core.engine.merge_models import CheckedMerge
from impart_core.engine.requests import MergeRequest
from impart_flows.events import observed_run
from impart_flows.gpu_limit import gpu_slot
from impart_flows.progress_page import SECONDS_BETWEEN_UPDATES, ProgressPage
from impart_flows.run_page import show_merge
from impart_tasks.executor import PrefectExecutor


def flow_of(
    checked: CheckedMerge | None = None, progress: Progress | None = None
) -> "Flow[[MergeRequest], MergeReport]":
    """Return the flow; a run of this process is handed what was checked before and who listens to its progress."""

    def merge(request: MergeRequest) -> MergeReport:
        """Merge models, and publish what was merged how.

        Raises:
            ImpartError: the request cannot be carried out; the message says what to change.
        """
        with observed_run() as run, gpu_slot(request.device):
            name = request.name or request.stages[-1].impart.name or request.method
            shown = ProgressPage("merge-progress", name, progress, SECONDS_BETWEEN_UPDATES)
            done = merge_models(
                request, PrefectExecutor(), checked=checked, progress=shown, run_id=str(flow_run.id or "")
            )
            run.tell(done.entries, done.sources, request.store, done.new)
        show_merge(done.report)
        return done.report

    return Flow(merge, name="merge", flow_run_name="merge by {request.method}")


merge = flow_of()


def run_merge(
    request: MergeRequest, checked: CheckedMerge | None = None, progress: Progress | None = None
) -> MergeReport:
    """Run the flow with the request's number of workers, by default one for each core."""
    runner: Any = ThreadPoolTaskRunner(max_workers=request.workers or default_workers())
    return flow_of(checked, progress).with_options(task_runner=runner)(request)
