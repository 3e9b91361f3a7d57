"""The quality gate: how much a compressed model may lose on tasks against the fine-tuned one."""

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import Field, WithJsonSchema, field_validator, model_validator

from impart_core.base.errors import ConfigError
from impart_core.base.settings import Frozen, nearest
from impart_core.evaluation.options import MeasureOptions
from impart_core.evaluation.result import Split
from impart_core.searching.objective import LOSS, bounds_of, chosen_metric, lower_is_better

_ROUNDING = 1e-9  # .50 less .48 is more than .02 in binary
Measured = tuple[float, float | None]  # a value and its standard error
Metrics = Mapping[str, Mapping[str, Measured]]  # by task and metric


_WAYS = [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]
_BY_NAME = {"type": "object", "additionalProperties": {"type": ["string", "null"]}}
# Tasks, and each one's metric: in a file, a name or a list of names will do.
Tasks = Annotated[dict[str, str | None], WithJsonSchema({"anyOf": [*_WAYS, _BY_NAME]})]


class Gate(Frozen):
    """What a compressed model has to keep to be promoted; without tasks everything passes.

    Attributes:
        tasks: lm-eval's tasks, and each one's metric; None: its only one.
        loses: how much it may lose on each task, in units of the metric: .02 is two points of accuracy.
        errors: or so many standard errors of the difference, where that is more: of two scores with errors a and b,
            √(a² + b²), as if each were measured on items of its own, which is more than it is on the same items. Where
            lm-eval gives no error, `loses` alone decides.
        at_least: the lowest value, by task, that it must have (the highest, where lower is better), whatever the
            fine-tuned model has.
        split: which items: `validation`, so that what is chosen by the gate can be measured on `test` afterwards.
        limit: only so many items of each task; None: all.
        measuring: how tasks are measured.
    """

    tasks: Tasks = Field(default_factory=dict)
    loses: float = Field(default=0.02, ge=0)
    errors: float = Field(default=1.0, ge=0)
    at_least: dict[str, float] = Field(default_factory=dict)
    split: Split = "validation"
    limit: int | None = Field(default=None, ge=1)
    measuring: MeasureOptions = MeasureOptions()

    @field_validator("tasks", mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        return tasks_of(value)

    @model_validator(mode="after")
    def _can_be_passed(self) -> "Gate":
        for task, bound in self.at_least.items():
            if task not in self.tasks:
                raise ConfigError(f"at_least names {task!r}, which is not one of the tasks.{nearest(task, self.tasks)}")
            metric = self.tasks[task] or ""
            lowest, highest = bounds_of(metric)
            if bound < lowest if lower_is_better(metric) else bound > highest:
                best = lowest if lower_is_better(metric) else highest
                raise ConfigError(
                    f"No model has a {metric} of {bound:g} on {task}: {best:g} is the best that there is."
                )
        return self

    def with_tasks(self, tasks: Mapping[str, str | None]) -> "Gate":
        """Return the gate for a model with tasks of its own; the gate's own ones where it has none."""
        if not tasks:
            return self
        kept = {task: bound for task, bound in self.at_least.items() if task in tasks}
        return self.model_copy(update={"tasks": dict(tasks), "at_least": kept})


class Comparison(Frozen):
    """One task of a gate.

    Attributes:
        task: the task.
        metric: the metric that decides.
        before: of the fine-tuned model: value and standard error; None where it is not compared with one.
        after: of the compressed one.
        lost: how much worse it is, in units of the metric; negative: it is better.
        allowed: how much worse it may be.
        passed: whether the gate is passed on this task.
    """

    task: str
    metric: str
    before: Measured | None
    after: Measured
    lost: float | None
    allowed: float | None
    passed: bool


def tasks_of(value: Any) -> Any:
    """Return tasks by name with a metric or None each, from a name, a list of names, or a mapping."""
    if isinstance(value, str):
        return {value: None}
    if isinstance(value, list | tuple):
        wrong = next((one for one in value if not isinstance(one, str)), None)
        if wrong is not None:
            raise ConfigError(f"{wrong!r:.60} is no name of a task.")
        return dict.fromkeys(value)
    return value


def compare(gate: Gate, before: Metrics | None, after: Metrics) -> tuple[Comparison, ...]:
    """Return how a compressed model does on each task of a gate.

    Args:
        gate: the gate.
        before: what the fine-tuned model scored; None: there is none to compare with, and `at_least` alone counts.
        after: what the compressed one scored.

    Raises:
        ConfigError: a task has several metrics and the gate names none, or one that was not measured.
    """
    return tuple(_compare(gate, task, before[task] if before else None, after[task]) for task in gate.tasks)


def deciding_metric(gate: Gate, task: str, known: Iterable[str]) -> str:
    """Return the metric that decides on a task, of those that are known.

    Raises:
        ConfigError: the task has several and the gate names none, or another one; or it has none.
    """
    names, wanted = list(known), gate.tasks[task]
    if not names:
        raise ConfigError(f"{task} is a group of tasks that has no score of its own. Name its tasks in the gate.")
    # Where none is named, the task's own one is meant, beside which there may be the loss.
    own = [name for name in names if name != LOSS] or names
    return chosen_metric(task, wanted, names if wanted else own)


def _compare(gate: Gate, task: str, before: Mapping[str, Measured] | None, after: Mapping[str, Measured]) -> Comparison:
    metric = deciding_metric(gate, task, after)
    sign = -1.0 if lower_is_better(metric) else 1.0
    value, _ = after[metric]
    floor = gate.at_least.get(task)
    passed = floor is None or sign * value >= sign * floor - _ROUNDING
    if before is None:
        return Comparison(
            task=task, metric=metric, before=None, after=after[metric], lost=None, allowed=None, passed=passed
        )
    error = math.hypot(before[metric][1] or 0.0, after[metric][1] or 0.0)
    lost, allowed = sign * (before[metric][0] - value), max(gate.loses, gate.errors * error)
    return Comparison(
        task=task,
        metric=metric,
        before=before[metric],
        after=after[metric],
        lost=lost,
        allowed=allowed,
        passed=passed and lost <= allowed + _ROUNDING,
    )


def quality(found: Comparison) -> str:
    """Return a task of a gate for people: before → after, and what it may lose."""
    after = f"{found.after[0]:.4g}"
    if found.before is None:
        return f"{found.task} {after}"
    return f"{found.task} {found.before[0]:.4g} → {after} (may lose {found.allowed or 0:.3g})"
