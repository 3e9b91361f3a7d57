"""Flow: a fine-tuned checkpoint → a published delta."""

from typing import Any

from prefect import Flow
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from impart_core.base.numerics import default_workers
from impart_core.engine.compress import CompressReport
from impart_core.engine.compress import compress as compress_model
from impart_core.engine.executor import Progress
from impart_core.engine.preflight import Checked
from impart_core.engine.requests import CompressRequest
from impart_flows.events import observed_run
from impart_flows.gpu_limit import gpu_slot
from impart_flows.run_page import show_compression
from impart_flows.spread import spread_out


def flow_of(
    checked: Checked | None = None, progress: Progress | None = None
) -> "Flow[[CompressRequest], CompressReport]":
    """Return the flow; a run of this process is handed what was checked before and who listens to its progress."""

    def compress(request: CompressRequest) -> CompressReport:
        """Compress the delta between two checkpoints and publish it.

        Raises:
            ImpartError: the request cannot be carried out; the message says what to change.
        """
        with observed_run() as run, gpu_slot(request.device), spread_out(request) as (placed, executor):
            done = compress_model(placed, executor, checked=checked, progress=progress, run_id=str(flow_run.id or ""))
            run.tell(done.entries, done.sources, placed.store, done.new)
        show_compression(done.report, done.blocks, done.new)
        return done.report.model_copy(update={"events_sent": run.sent, "events_lost": run.lost})

    return Flow(compress, name="compress", flow_run_name="compress {request.finetuned}: {request.config.label}")


compress = flow_of()


def run_compress(
    request: CompressRequest, checked: Checked | None = None, progress: Progress | None = None
) -> CompressReport:
    """Run the flow with the request's number of workers, by default one for each core."""
    runner: Any = ThreadPoolTaskRunner(max_workers=request.workers or default_workers())
    return flow_of(checked, progress).with_options(task_runner=runner)(request)
