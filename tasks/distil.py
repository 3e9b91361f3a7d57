"""Task: scales tuned against the fine-tuned model's logits."""

from impart_core.engine import stages
from impart_tasks.stage import task_of

distil_block_scales = task_of(stages.distil_block_scales)
