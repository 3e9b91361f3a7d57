"""Flow: a search file → the best candidate, scored on the test split, and the study of all that were tried."""

from typing import Any

from prefect import Flow
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from impart_core.engine.executor import Progress
from impart_core.engine.search import CheckedSearch, SearchReport, SearchRequest
from impart_core.engine.search import search as search_models
from impart_flows.events import observed_run
from impart_flows.gpu_limit import gpu_slot
from impart_flows.progress_page import ProgressPage
from impart_flows.search_page import show_search
from impart_flows.spread import spread_out


def flow_of(
    checked: CheckedSearch | None = None, progress: Progress | None = None
) -> "Flow[[SearchRequest], SearchReport]":
    """Return the flow; a run of this process is handed what was checked before and who listens to its progress."""

    def search(request: SearchRequest) -> SearchReport:
        """Search on validation items, score the winner once on the test split, and publish it and the study.

        Raises:
            ImpartError: the request cannot be carried out; the message says what to change.
        """
        with observed_run() as run, gpu_slot(request.device), spread_out(request) as (placed, executor):
            shown = ProgressPage("search-progress", request.file.name or request.file.kind, progress)
            report = search_models(placed, executor, checked=checked, progress=shown, run_id=str(flow_run.id or ""))
            run.tell([report.entry], report.sources, placed.store, [] if report.cached else [report.id])
        show_search(report)
        return report

    return Flow(search, name="search", flow_run_name="search {request.file.kind} by {request.file.sampler.name}")


search = flow_of()


def run_search(
    request: SearchRequest, checked: CheckedSearch | None = None, progress: Progress | None = None
) -> SearchReport:
    """Run the flow with as many candidates at once as the request says, by default as the file has in parallel."""
    runner: Any = ThreadPoolTaskRunner(max_workers=request.workers or request.file.parallel)
    return flow_of(checked, progress).with_options(task_runner=runner)(request)
