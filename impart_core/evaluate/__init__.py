"""Measures models with lm-evaluation-harness; importing this package imports neither lm-eval nor transformers."""

from impart_core.evaluate.catalogue import LOCAL_TASKS, check_tasks, task_fingerprint
from impart_core.evaluate.harness import evaluate
from impart_core.evaluate.result import Evaluation, Metric, TaskResult

__all__ = ["LOCAL_TASKS", "Evaluation", "Metric", "TaskResult", "check_tasks", "evaluate", "task_fingerprint"]
