"""Tasks: a delta looked for, or its published blocks gathered under one manifest, and named."""

from impart_core.engine import stages
from impart_tasks.stage import task_of

find_delta = task_of(stages.find_delta)
gather_delta = task_of(stages.gather_delta)
