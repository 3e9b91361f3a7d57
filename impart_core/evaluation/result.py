"""What an evaluation measured."""

from typing import Any, Literal

from pydantic import Field

from impart_core.base.settings import Frozen

Split = Literal["validation", "test"]
Measure = Literal["metrics", "answer_loss"]  # the task's own metrics, or the loss of the right answers
RunCode = Literal["never", "sandboxed", "unsandboxed"]  # what may become of code that a model writes


class Metric(Frozen):
    """A mean over items and the standard error of that mean (None where lm-eval gives none)."""

    value: float
    stderr: float | None = None


class TaskResult(Frozen):
    """All metrics of one task.

    Attributes:
        metrics: by lm-eval's metric name; a filter other than lm-eval's default follows after a comma.
        items: number of items that were measured.
        split: the split they came from; None for a group of tasks.
    """

    metrics: dict[str, Metric]
    items: int
    split: Split | None


class Evaluation(Frozen):
    """The results of one model on one or more tasks.

    Attributes:
        tasks: by task name, those inside of groups included.
        lm_eval_version: version of lm-evaluation-harness that measured them.
        seconds: wall-clock time, loading the model included.
        samples: where asked for, lm-eval's record of each item by task: document, arguments, answers, scores.
    """

    tasks: dict[str, TaskResult]
    lm_eval_version: str
    seconds: float
    samples: dict[str, tuple[dict[str, Any], ...]] = Field(default_factory=dict, exclude=True)


class ItemScores(Frozen):
    """The scores of one model on a range of a task's items.

    Attributes:
        task: the task's name.
        items: the range, by place in the task's order of items.
        scores: for each metric that is a number of its own for each item, that number by item; a filter other than
            lm-eval's default follows the metric's name after a comma.
        higher_is_better: by metric, where the task says so.
        tokens: for `answer_loss`, the number of tokens of each item's answer; else empty.
        digests: of each item's content: see `item_digest`.
    """

    task: str
    items: tuple[int, int]
    scores: dict[str, tuple[float, ...]]
    higher_is_better: dict[str, bool]
    tokens: tuple[int, ...] = ()
    digests: tuple[str, ...]
