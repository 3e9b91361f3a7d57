"""Task: how sensitive a model's predictions are to its matrices."""

from impart_core.engine import sensitivity
from impart_tasks.stage import task_of

measure_sensitivity = task_of(sensitivity.measure_sensitivity)
