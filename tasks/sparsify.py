"""Task: the deltas of blocks, sparsified and encoded."""

from impart_core.engine import stages
from impart_tasks.stage import task_of

sparsify_blocks = task_of(stages.sparsify_blocks)
