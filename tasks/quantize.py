"""Task: one decoder layer, compressed on what the layers before it give."""

from impart_core.engine import chain
from impart_tasks.stage import task_of

quantize_layer = task_of(chain.quantize_layer)
