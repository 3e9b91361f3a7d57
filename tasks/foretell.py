"""Task: the codes of a few layers, measured to foretell what a model keeps."""

from impart_core.engine import foretell
from impart_tasks.stage import task_of

measure_codes = task_of(foretell.measure_codes)
