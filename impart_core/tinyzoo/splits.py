"""Train, validation and test items: a prompt's own hash decides which split it is in, so none is in two."""

import hashlib
from collections.abc import Iterator
from random import Random
from typing import Literal

from impart_core.tinyzoo.problems import PROBLEMS, Item

Split = Literal["train", "validation", "test"]
SPLIT_ITEMS = 300


def split_of(prompt: str) -> Split:
    """Return the split that a prompt belongs to: a tenth each in validation and test, the rest in train."""
    bucket = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "big") % 10
    return "validation" if bucket == 0 else "test" if bucket == 1 else "train"


def stream(task: str, split: Split, seed: int = 0) -> Iterator[Item]:
    """Yield the items of one split without end; prompts may come again.

    Args:
        task: "math", "code" or "chat".
        split: the split that every item belongs to.
        seed: items of another seed are other items of the same split.

    Raises:
        UnknownNameError: there is no such task.
    """
    problem = PROBLEMS.get(task)
    rng = Random(f"{task}/{split}/{seed}")
    while True:
        item = problem.draw(rng)
        if split_of(item.prompt) == split:
            yield item


def items(task: str, split: Split, count: int = SPLIT_ITEMS) -> tuple[Item, ...]:
    """Return the first `count` items of a split, no prompt twice.

    Args:
        task: "math", "code" or "chat".
        split: which split.
        count: how many items; validation and test have 300.

    Raises:
        UnknownNameError: there is no such task.
    """
    chosen: dict[str, Item] = {}
    for item in stream(task, split):
        chosen.setdefault(item.prompt, item)
        if len(chosen) == count:
            break
    return tuple(chosen.values())
