"""Task: gains trained against the fine-tuned model's predictions."""

from impart_core.engine import distil
from impart_tasks.stage import task_of

distil_gains = task_of(distil.distil_gains)
