"""Scores item by item: sorted out of lm-eval's records, joined over ranges, and their means."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from numbers import Real
from typing import Any

from impart_core.base.errors import EvaluationError, ModelError
from impart_core.evaluation.result import ItemScores, Metric


def scores_of(task: str, samples: Iterable[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """Return the scores in lm-eval's records of a task's items, by metric and position in the split.

    A metric counts where it is a number of its own for each item. Others, as F1 over all items, have no item's score.

    Raises:
        EvaluationError: there is no such metric.
    """
    scores: dict[str, dict[int, float]] = {}
    others: set[str] = set()
    for sample in samples:
        for metric in sample["metrics"]:
            name = metric if sample["filter"] == "none" else f"{metric},{sample['filter']}"
            value = sample[metric]
            if isinstance(value, Real) and not isinstance(value, complex):
                scores.setdefault(name, {})[sample["doc_id"]] = float(value)
            else:
                others.add(name)
    usable = {name: found for name, found in scores.items() if name not in others}
    if not usable:
        raise EvaluationError(
            f"Task {task!r} has no metric that is a number for each item: {', '.join(sorted(others))} are made from "
            "all items together. Use answer_loss."
        )
    return usable


def require_finite(task: str, scores: Mapping[str, Mapping[int, float]]) -> None:
    """Check that a model's scores on a task, by metric and item, are finite.

    Raises:
        ModelError: one is not.
    """
    for metric, values in scores.items():
        wrong = [value for value in values.values() if not math.isfinite(value)]
        if wrong:
            raise ModelError(
                f"Task {task!r} gave {metric} = {wrong[0]} on {len(wrong)} of {len(values)} items: the model's outputs "
                "are not finite."
            )


def joined(parts: Sequence[ItemScores]) -> ItemScores:
    """Return the scores of a range from those of its pieces, which follow one another."""
    first = parts[0]
    assert all(before.items[1] == after.items[0] for before, after in pairwise(parts))
    return first.model_copy(
        update={
            "items": (first.items[0], parts[-1].items[1]),
            "scores": {name: tuple(value for part in parts for value in part.scores[name]) for name in first.scores},
            "tokens": tuple(number for part in parts for number in part.tokens),
            "digests": tuple(digest for part in parts for digest in part.digests),
        }
    )


def means(scores: ItemScores) -> dict[str, Metric]:
    """Return the mean of each metric over items, each of which counts once, and its standard error.

    The mean of `answer_loss` is over items as well, not over tokens: items are what is drawn, what tests pair, and
    what other metrics are means over, and an item with a long answer would else outweigh many with short ones.
    `tokens` has what a mean over tokens takes.
    """
    return {name: mean_of(values) for name, values in scores.scores.items()}


def mean_of(values: Sequence[float]) -> Metric:
    """Return the mean of values and its standard error (None for a single value), independent of their order."""
    number = len(values)
    mean = math.fsum(values) / number
    if number == 1:
        return Metric(value=mean)
    variance = math.fsum((value - mean) ** 2 for value in values) / (number - 1)
    return Metric(value=mean, stderr=math.sqrt(variance / number))


def pooled(parts: Sequence[tuple[int, Metric]]) -> Metric:
    """Return mean and standard error over all items from the number of items, mean and error of each piece."""
    number = sum(items for items, _ in parts)
    mean = math.fsum(items * metric.value for items, metric in parts) / number
    if number == 1:
        return Metric(value=mean)
    squares = math.fsum(
        items * (items - 1) * (metric.stderr or 0.0) ** 2 + items * (metric.value - mean) ** 2
        for items, metric in parts
    )
    return Metric(value=mean, stderr=math.sqrt(squares / (number - 1) / number))
