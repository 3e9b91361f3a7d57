"""What is made of scores: answer loss and share of the gap kept, with standard errors over items and seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Figures = dict[str, Any]


@dataclass(frozen=True)
class Losses:
    """Answer losses of the same items, in nats a token.

    Attributes:
        compressed: of the compressed models, (seeds, items).
        base: of the base, (items,).
        tuned: of the fine-tune, (items,).
    """

    compressed: np.ndarray
    base: np.ndarray
    tuned: np.ndarray


def mean_and_error(scores: np.ndarray) -> tuple[float, float]:
    """Return the mean of scores, (seeds, items), and its standard error.

    Items and seeds are both drawn. The error is √(s_i²/n + s_s²/k): s_i² the variance over the n items of their means
    over seeds, s_s² that over the k seeds of their means over items; with one seed the first part alone.
    """
    items, seeds = scores.mean(axis=0), scores.mean(axis=1)
    variance = float(items.var(ddof=1)) / len(items) if len(items) > 1 else 0.0
    if len(seeds) > 1:
        variance += float(seeds.var(ddof=1)) / len(seeds)
    return float(scores.mean()), math.sqrt(variance)


def share_kept(losses: Losses) -> tuple[float, float]:
    """Return the share of the base→fine-tuned gap that is kept, (L_base − L)/(L_base − L_tuned), and its error.

    A ratio of means over the same items: its error is that of the mean of (L_base − L) − share·(L_base − L_tuned),
    item by item, over the mean gap.
    """
    gap, kept = losses.base - losses.tuned, losses.base - losses.compressed
    share = float(kept.mean() / gap.mean())
    return share, mean_and_error(kept - share * gap)[1] / abs(float(gap.mean()))


def figures_of(
    losses: Losses, bytes_of: Mapping[str, float], options: Mapping[str, Any], matches: np.ndarray | None
) -> Figures:
    """Return a cell's figures as values for JSON; bytes are means over seeds."""
    loss, share = mean_and_error(losses.compressed), share_kept(losses)
    found: Figures = {
        **bytes_of,
        "answer_loss": _rounded(loss),
        "share_kept": _rounded(share),
        "base_loss": round(float(losses.base.mean()), 6),
        "tuned_loss": round(float(losses.tuned.mean()), 6),
        "items": losses.compressed.shape[1],
        "seeds": losses.compressed.shape[0],
        "options": dict(options),
    }
    return found if matches is None else {**found, "exact_match": _rounded(mean_and_error(matches))}


def over_tasks(figures: Sequence[Figures], name: str) -> tuple[float, float]:
    """Return the mean of a figure over tasks and its standard error: tasks are given, not drawn."""
    values = [one[name] for one in figures]
    error = math.sqrt(sum(error**2 for _, error in values)) / len(values)
    return sum(value for value, _ in values) / len(values), error


def _rounded(found: tuple[float, float]) -> list[float]:
    return [round(found[0], 6), round(found[1], 6)]
