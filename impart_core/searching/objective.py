"""What a search looks for: objectives over the scores of items, and bounds that candidates have to keep."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from impart_core.base.errors import ConfigError
from impart_core.base.settings import Frozen, nearest

Goal = Literal["maximize", "minimize"]
Values = Mapping[str, Mapping[str, np.ndarray]]  # by task and metric, the value of each item
BYTES, MEAN, WORST, LOSS = "bytes", "mean", "worst", "answer_loss"
QUANTITIES = (BYTES, MEAN, WORST, LOSS)
# Of lm-eval's metrics and ours those that are better when they are lower.
LOWER_IS_BETTER = (LOSS, "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "ter")

# The lowest and the highest value of metrics that are bounded in all tasks. An f1 is a share here, a percentage there.
_SHARES = ("exact_match", "acc", "acc_norm", "mc1", "mc2", "pass@1", "pass_at_1")
_ANY = (-math.inf, math.inf)
_BOUNDS = {
    **dict.fromkeys(_SHARES, (0.0, 1.0)),
    "mcc": (-1.0, 1.0),
    **dict.fromkeys(("bleu", "chrf"), (0.0, 100.0)),
    **dict.fromkeys((LOSS, "bits_per_byte", "brier_score", "ter"), (0.0, math.inf)),
    **dict.fromkeys(("perplexity", "word_perplexity", "byte_perplexity"), (0.0, math.inf)),
}


class Objective(Frozen):
    """One quantity to make as high or as low as possible.

    In a file, text will do: `bytes`, `mean`, `worst`, the name of a task, or `answer_loss`, its mean over the tasks.

    Attributes:
        of: `bytes`: what the model takes up in a store; `mean` or `worst`: over all tasks; or a task.
        metric: which metric of the tasks; None: each task's own.
        goal: which way is better; None: as it is with this metric.
    """

    of: str
    metric: str | None = None
    goal: Goal | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"of": value}
        if isinstance(value, dict) and value.get("of") == LOSS:
            return {**value, "of": MEAN, "metric": value.get("metric", LOSS)}
        return value

    @property
    def name(self) -> str:
        """What it is called in files and results."""
        if self.of == BYTES or self.metric is None:
            return self.of
        return self.metric if (self.of, self.metric) == (MEAN, LOSS) else f"{self.of} {self.metric}"

    def metric_of(self, task: str, metrics: Mapping[str, str | None], known: Iterable[str]) -> str:
        """Return which metric of a task it is about.

        Args:
            task: the task.
            metrics: each task's own metric, as the file names it.
            known: the metrics that were measured.

        Raises:
            ConfigError: the file names none and there are several, or names one that was not measured.
        """
        return chosen_metric(task, self.metric or metrics[task], known)

    def minimizes(self, metrics: Mapping[str, str | None]) -> bool:
        """Return whether lower is better.

        Raises:
            ConfigError: it is so with the metrics of some tasks only.
        """
        if self.goal or self.of == BYTES:
            return self.goal != "maximize"
        own = [self.metric or metrics[task] or "" for task in self._tasks(metrics)]
        lower = {lower_is_better(metric) for metric in own}
        if len(lower) > 1:
            raise ConfigError(
                f"With some of {', '.join(own)} lower is better, with others higher: they have no {self.of}."
            )
        return lower == {True}

    def bounds(self, metrics: Mapping[str, str | None]) -> tuple[float, float]:
        """Return the lowest and the highest value that it can have, as far as the metrics tell."""
        if self.of == BYTES:
            return 1.0, math.inf
        known = [bounds_of(self.metric or metrics[task] or "") for task in self._tasks(metrics)]
        lows, highs = zip(*known, strict=True)
        if self.of == MEAN:
            return sum(lows) / len(lows), sum(highs) / len(highs)
        worst = max if self.minimizes(metrics) else min  # of all tasks
        return worst(lows), worst(highs)

    def contributions(self, values: Values, metrics: Mapping[str, str | None]) -> dict[str, np.ndarray]:
        """Return what each item contributes: the objective is the sum, over tasks, of the mean over a task's items.

        Of `worst` all other tasks than the worst contribute nothing.
        """
        tasks = self._tasks(metrics)
        own = {task: values[task][self.metric_of(task, metrics, values[task])] for task in tasks}
        if self.of == WORST:
            sign = -1.0 if self.minimizes(metrics) else 1.0
            worst = min(tasks, key=lambda task: sign * float(own[task].mean()))
            return {worst: own[worst]}
        return {task: value / len(tasks) for task, value in own.items()}

    def _tasks(self, metrics: Mapping[str, str | None]) -> list[str]:
        return [*metrics] if self.of in (MEAN, WORST) else [self.of]


def chosen_metric(task: str, wanted: str | None, known: Iterable[str]) -> str:
    """Return which metric of a task is meant: the one that is named, else its only one.

    Args:
        task: the task.
        wanted: the metric's name; None: none is named.
        known: the metrics that were measured.

    Raises:
        ConfigError: none is named and there are several, or one is named that was not measured.
    """
    names = list(known)
    if wanted in names:
        return wanted
    if wanted is None and len(names) == 1:
        return names[0]
    listed = ", ".join(names) or "none"
    if wanted is None:
        first = f'"{names[0]}"' if "," in names[0] else names[0]  # as YAML has to have it
        raise ConfigError(f"The task {task} has several metrics: {listed}. Say which: tasks: {{{task}: {first}}}.")
    raise ConfigError(f"The task {task} has no metric {wanted!r}.{nearest(wanted, names)} It has: {listed}.")


def bounds_of(metric: str) -> tuple[float, float]:
    """Return the lowest and the highest value that a metric can have; a filter of answers may follow its name."""
    return _BOUNDS.get(metric.partition(",")[0], _ANY)


def lower_is_better(metric: str) -> bool:
    """Return whether lower values of a metric are better; a filter of answers may follow its name after a comma."""
    return metric.partition(",")[0] in LOWER_IS_BETTER


def value_of(contributions: Mapping[str, np.ndarray]) -> float:
    """Return an objective's value: the sum of the means."""
    return float(sum(float(values.mean()) for values in contributions.values()))


class Constraint(Frozen):
    """A bound that the winner keeps: `bytes <= 5e6`, `mean >= 0.4`.

    Attributes:
        of: the quantity: the name of an objective, whether the search has it as one or not.
        at_most: whether the bound is the highest value, and not the lowest.
        bound: the bound.
    """

    of: Objective
    at_most: bool
    bound: float

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        found = re.fullmatch(r"\s*(?P<of>\S.*?)\s*(?P<sign><=|>=)\s*(?P<bound>\S+)\s*", value)
        try:
            return {"of": found["of"], "at_most": found["sign"] == "<=", "bound": float(found["bound"])}  # type: ignore[index]
        except (TypeError, ValueError):
            raise ConfigError(
                f"{value!r} is no constraint. Write a quantity, <= or >=, and a number: bytes <= 5e6."
            ) from None

    @property
    def name(self) -> str:
        """How it is written."""
        return f"{self.of.name} {'<=' if self.at_most else '>='} {self.bound:g}"

    def excess(self, value: float) -> float:
        """Return by how much a value breaks the bound, as a share of it where there is one; at most 0: not at all."""
        scale = abs(self.bound) or 1.0
        return (value - self.bound if self.at_most else self.bound - value) / scale


def require_possible(constraints: Sequence[Constraint], metrics: Mapping[str, str | None]) -> None:
    """Raise ConfigError where no candidate can keep all of the bounds.

    Args:
        constraints: the bounds.
        metrics: each task's own metric, as far as it is known.
    """
    lowest: dict[str, Constraint] = {}
    highest: dict[str, Constraint] = {}
    for one in constraints:
        least, most = one.of.bounds(metrics)
        if one.at_most and one.bound < least:
            raise ConfigError(f"No model keeps {one.name}: {one.of.name} is at least {least:g}. Raise the bound.")
        if not one.at_most and one.bound > most:
            raise ConfigError(f"No model keeps {one.name}: {one.of.name} is at most {most:g}. Lower the bound.")
        side = highest if one.at_most else lowest
        other = side.get(one.of.name)
        if other is None or one.excess(other.bound) > 0:
            side[one.of.name] = one
    for name, low in lowest.items():
        if name in highest and highest[name].bound < low.bound:
            raise ConfigError(f"The constraints {low.name} and {highest[name].name} contradict each other. Drop one.")


class Aims(Frozen):
    """What a search looks for, as a whole.

    Attributes:
        tasks: the tasks, and each one's own metric; None: its only one.
        objectives: the objectives, the one that decides first.
        constraints: the bounds.
    """

    tasks: dict[str, str | None]
    objectives: tuple[Objective, ...] = Field(default=(Objective(of=MEAN),), min_length=1)
    constraints: tuple[Constraint, ...] = ()

    @field_validator("tasks", mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {value: None}
        if not isinstance(value, list | tuple):
            return value
        for one in value:
            if not isinstance(one, str):
                raise ConfigError(f"tasks lists {one!r:.60}, which is no name of a task. List names: [gsm8k, mbpp].")
        return dict.fromkeys(value)

    @field_validator("objectives", "constraints", mode="before")
    @classmethod
    def _alone(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | dict) else value

    @model_validator(mode="after")
    def _hold_together(self) -> Self:
        if not self.tasks:
            raise ConfigError("A search needs at least one task of lm-eval: tasks: [tinyzoo_math].")
        for objective in (*self.objectives, *(constraint.of for constraint in self.constraints)):
            if objective.of not in (BYTES, MEAN, WORST, *self.tasks):
                guess = nearest(objective.of, (*QUANTITIES, *self.tasks))
                raise ConfigError(f"{objective.of!r} is neither a quantity nor one of the tasks.{guess}")
            objective.minimizes(self.tasks)
        names = [objective.name for objective in self.objectives]
        if len(set(names)) < len(names):
            raise ConfigError(f"An objective stands there twice: {', '.join(names)}.")
        if all(objective.of == BYTES for objective in self.objectives):
            raise ConfigError("Bytes alone are no objective: the smallest model is none. Add mean, worst or a task.")
        require_possible(self.constraints, self.tasks)
        return self

    @property
    def quantities(self) -> tuple[Objective, ...]:
        """The objectives, and the quantities beside them that constraints are about."""
        named = {one.name: one for one in (*self.objectives, *(constraint.of for constraint in self.constraints))}
        return tuple(named.values())

    @property
    def goals(self) -> dict[str, Goal]:
        """The objectives by name, and which way is better, the one that decides first."""
        return {one.name: "minimize" if one.minimizes(self.tasks) else "maximize" for one in self.objectives}

    @property
    def counts_bytes(self) -> bool:
        """Whether it has to be known how many bytes a candidate takes up."""
        return any(quantity.of == BYTES for quantity in self.quantities)

    def excesses(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return for each constraint by how much a candidate with these values breaks it; at most 0: not at all."""
        return {constraint.name: constraint.excess(values[constraint.of.name]) for constraint in self.constraints}

    def upward(self, objective: Objective, value: float) -> float:
        """Return a value of an objective as a number of which more is better."""
        return -value if objective.minimizes(self.tasks) else value
