"""Task: one block's delta, sparsified and encoded."""

from impart_core.engine import stages
from impart_tasks.stage import task_of

sparsify_block = task_of(stages.sparsify_block)
