"""Tasks: a candidate of a search made and scored; the base and the experts that it is held against scored."""

from impart_core.engine import candidates, verdict
from impart_tasks.stage import task_of

try_candidate = task_of(candidates.try_candidate)
score_reference = task_of(verdict.score_reference)
