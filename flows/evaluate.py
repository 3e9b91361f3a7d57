"""Flow: a model → metrics, each task's published on its own."""

from pathlib import Path

from prefect import Flow
from prefect.runtime import flow_run

from impart_core.engine.evaluate import Measurable
from impart_core.engine.evaluate import evaluate as evaluate_model
from impart_core.engine.executor import Progress
from impart_core.engine.references import EvaluationResult
from impart_core.engine.requests import EvaluateRequest
from impart_flows.events import observed_run
from impart_flows.gpu_limit import gpu_slot
from impart_flows.run_page import show_evaluation
from impart_tasks.executor import PrefectExecutor

Results = tuple[EvaluationResult, ...]


def flow_of(checked: Measurable | None = None, progress: Progress | None = None) -> "Flow[[EvaluateRequest], Results]":
    """Return the flow; a run of this process is handed what was checked before and who listens to its progress."""

    def evaluate(request: EvaluateRequest) -> Results:
        """Measure a checkpoint folder, or the model that a delta gives, and publish the metrics.

        Raises:
            ImpartError: the request cannot be carried out; the message says what to change.
        """
        with observed_run() as run, gpu_slot(request.device):
            results = evaluate_model(
                request, PrefectExecutor(), checked=checked, progress=progress, run_id=str(flow_run.id or "")
            )
            source = request.base or (checked.base.location if checked and checked.base else request.model)
            for result in results:
                made = [] if result.cached else [result.id]
                run.tell([result.entry], [source], request.results_store or request.store, made)
        how = {"split": request.split, **request.measuring.of_recipe()}
        show_evaluation(Path(request.model).name, results, how)
        return results

    return Flow(evaluate, name="evaluate", flow_run_name="evaluate {request.model}")


evaluate = flow_of()


def run_evaluate(
    request: EvaluateRequest, checked: Measurable | None = None, progress: Progress | None = None
) -> Results:
    """Run the flow."""
    return flow_of(checked, progress)(request)
