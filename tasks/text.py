"""Task: calibration text as tokens."""

from impart_core.engine import stages
from impart_tasks.stage import task_of

read_calibration_text = task_of(stages.read_calibration_text)
