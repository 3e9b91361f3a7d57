"""Comparing two candidates on the same items: the difference of their means, its standard error, and a t-test."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import Field

from impart_core.base.settings import Frozen

Contributions = Mapping[str, np.ndarray]  # by task, what each of its items contributes to a quantity


class Difference(Frozen):
    """How much one candidate is above another.

    Attributes:
        value: the difference.
        stderr: its standard error; None where there are too few items.
        p: how likely so large a difference, either way, is without any cause: two-sided.
        items: how many items of how many tasks it is taken over.
    """

    value: float
    stderr: float | None = Field(default=None, ge=0)
    p: float = Field(ge=0, le=1)
    items: int


def difference(one: Contributions, other: Contributions) -> Difference:
    """Return how much `one` is above `other`, item by item on the same items.

    The difference is Σ_t mean_i d_ti, d_ti = what item i of task t contributes to one less what it does to the other,
    and its variance Σ_t s_t²/n_t. The test is Student's, with the degrees of freedom of Welch and Satterthwaite. So
    that a few items, all alike, prove nothing, it counts, in each task, two more items that contradict each other:
    differences +m and −m of weight ½ each and one of 0, m the largest |d| (Agresti and Min 2005, for matched pairs of
    answers that are right or wrong).

    Args:
        one: by task, what each of its items contributes to the first candidate's value; see `Objective.contributions`.
        other: the same of the second, over the same items.
    """
    differences = [_subtracted(one, other, task) for task in dict.fromkeys([*one, *other])]
    value = float(sum(float(each.mean()) for each in differences))
    items = sum(len(each) for each in differences)
    if any(len(each) < 2 for each in differences):
        return Difference(value=value, p=1.0, items=items)
    stderr = math.sqrt(sum(float(each.var(ddof=1)) / len(each) for each in differences))
    return Difference(value=value, stderr=stderr, p=_p_value(differences), items=items)


def is_below(one: Contributions, other: Contributions, significance: float) -> bool:
    """Return whether `one` is below `other` by more than chance: a one-sided test at this level."""
    found = difference(one, other)
    return found.value < 0 and found.p / 2 < significance


def _subtracted(one: Contributions, other: Contributions, task: str) -> np.ndarray:
    if task not in one:
        return -np.asarray(other[task], dtype=np.float64)
    if task not in other:
        return np.asarray(one[task], dtype=np.float64)
    return np.asarray(one[task], dtype=np.float64) - np.asarray(other[task], dtype=np.float64)


def _p_value(differences: Sequence[np.ndarray]) -> float:
    from scipy.special import stdtr

    mean, variances = 0.0, []
    for each in differences:
        count, largest = len(each) + 2, float(np.abs(each).max())
        shrunk = float(each.sum()) / count
        spread = (float((each**2).sum()) + largest**2) / count - shrunk**2
        mean += shrunk
        variances.append((spread / count, len(each) - 1))
    variance = sum(part for part, _ in variances)
    if variance <= 0.0:  # no item differs
        return 1.0
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in variances)
    return min(1.0, 2.0 * float(stdtr(freedom, -abs(mean) / math.sqrt(variance))))
