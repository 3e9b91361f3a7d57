"""Measures models with lm-evaluation-harness; importing this package imports neither lm-eval nor transformers."""

from impart_core.evaluation.catalogue import LOCAL_TASKS, check_tasks, task_fingerprint
from impart_core.evaluation.code_tasks import RunCode, check_code_tasks
from impart_core.evaluation.harness import Evaluator
from impart_core.evaluation.result import Evaluation, Metric, Split, TaskResult

__all__ = [
    "LOCAL_TASKS",
    "Evaluation",
    "Evaluator",
    "Metric",
    "RunCode",
    "Split",
    "TaskResult",
    "check_code_tasks",
    "check_tasks",
    "task_fingerprint",
]
