"""Task: the factors of one block, which every request on the same two checkpoints shares."""

from impart_core.engine import stages
from impart_tasks.stage import task_of

decompose_blocks = task_of(stages.decompose_blocks)
