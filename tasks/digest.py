"""Task: what a checkpoint is, by content."""

from impart_core.engine import stages
from impart_tasks.stage import task_of

digest_checkpoint = task_of(stages.digest_checkpoint)
