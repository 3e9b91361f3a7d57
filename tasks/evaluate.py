"""Task: a model measured by lm-evaluation-harness."""

from impart_core.engine import evaluate
from impart_tasks.stage import task_of

evaluate_model = task_of(evaluate.evaluate_model)
