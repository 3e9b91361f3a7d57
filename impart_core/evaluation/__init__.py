"""Measures models with lm-evaluation-harness; importing this package imports neither lm-eval nor transformers."""

from impart_core.evaluation.catalogue import LOCAL_TASKS, check_tasks, task_fingerprint
from impart_core.evaluation.harness import Evaluator
from impart_core.evaluation.result import Evaluation, Metric, Split, TaskResult

__all__ = [
    "LOCAL_TASKS",
    "Evaluation",
    "Evaluator",
    "Metric",
    "Split",
    "TaskResult",
    "check_tasks",
    "task_fingerprint",
]
