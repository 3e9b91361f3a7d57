"""Items of a task's split: one order for all models, whose every beginning is a fair sample, and what each item is."""

import copy
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, takewhile
from threading import Lock
from typing import Any

from impart_core.base.errors import EvaluationError
from impart_core.base.settings import Frozen
from impart_core.evaluation.catalogue import USUAL, task_fingerprint
from impart_core.evaluation.options import MeasureOptions
from impart_core.evaluation.prepared import load_tasks
from impart_core.evaluation.result import Split

ItemRange = tuple[int, int]  # from the first to before the second, by place in a task's order of items


# lm-eval's tasks shuffle by Python's global generator, which loading seeds: one is loaded at a time.
_loading = Lock()


class SplitItems(Frozen):
    """The items of a task's split.

    Attributes:
        task: lm-eval's name of the task.
        split: the split.
        count: number of items.
        higher_is_better: by metric, where the task says so.
        has_test: whether the task has a test split; if not, its "test" items are those of its validation split.
        in_test: places in the order of items that are also in the test split.
    """

    task: str
    split: Split
    count: int
    higher_is_better: dict[str, bool]
    has_test: bool
    in_test: tuple[int, ...]


@dataclass(frozen=True)
class OrderedTask:
    """A loaded task and the order of its items.

    Attributes:
        name: lm-eval's name of the task.
        task: lm-eval's task, which measuring changes; see `fresh`.
        order: position in the split by place in the order.
        seed: of the order and of few-shot examples.
    """

    name: str
    task: Any
    order: tuple[int, ...]
    seed: int

    def fresh(self) -> Any:
        """Return lm-eval's task in a state of its own, which draws the few-shot examples of an item by that item.

        lm-eval draws them one item after another, so that they would depend on which items are measured.
        """
        task = copy.copy(self.task)
        if hasattr(task, "sampler"):
            task.sampler = copy.copy(task.sampler)
        context = task.fewshot_context

        def context_of(doc: Any, *args: Any, **options: Any) -> Any:
            task.set_fewshot_seed(seed=int(item_digest(task, doc)[:8], 16) ^ self.seed)
            return context(doc, *args, **options)

        if task.get_config("num_fewshot"):
            task.fewshot_context = context_of
        return task

    def documents(self, positions: Iterable[int]) -> list[Any]:
        """Return the documents at positions of the split."""
        documents = self.task.eval_docs
        return [documents[position] for position in positions]

    def positions(self, items: ItemRange) -> tuple[int, ...]:
        """Return the positions in the split of a range of the order.

        Raises:
            EvaluationError: the range is empty, or the split has fewer items.
        """
        start, stop = items
        if not 0 <= start < stop:
            raise EvaluationError(f"Items {start} to {stop} of {self.name} are no range. Ask for at least one item.")
        if stop > len(self.order):
            raise EvaluationError(
                f"Task {self.name!r} has {len(self.order):,} items, and {stop:,} are asked for. Ask for at most these."
            )
        return self.order[start:stop]


def pieces(items: ItemRange) -> tuple[ItemRange, ...]:
    """Return a range cut at 50, 100, 200, 500, 1,000, 2,000, and so on.

    An item's score depends in its last bits on the batch that it is in. Each piece is measured by itself, so that
    ranges that share pieces share scores, whoever asks for them.
    """
    start, stop = items
    steps = (lead * 10**power for power in count(1) for lead in (5, 10, 20))
    cuts = [cut for cut in takewhile(lambda cut: cut < stop, steps) if cut > start]
    return tuple(zip([start, *cuts], [*cuts, stop], strict=True))


def order_of(task: str, items: int, seed: int) -> tuple[int, ...]:
    """Return positions in a split in an order that is drawn from the task's name and a seed.

    Data sets are often sorted or grouped: their first items are no sample of all.

    Args:
        task: lm-eval's name of the task.
        items: number of items of the split.
        seed: any; the same gives the same order on any machine.
    """

    def drawn(position: int) -> bytes:
        return hashlib.sha256(f"{seed}:{task}:{position}".encode()).digest()

    return tuple(sorted(range(items), key=drawn))


def item_digest(task: Any, document: Any) -> str:
    """Return the SHA-256 (hex) of an item's input, choices and right answer as a loaded task renders them."""
    choices = task.doc_to_choice(document) if task.get_config("doc_to_choice") is not None else None
    rendered = [task.doc_to_text(document), choices, task.doc_to_target(document)]
    return hashlib.sha256(json.dumps(rendered, sort_keys=True, default=str).encode()).hexdigest()


def ordered_task(name: str, split: Split, options: MeasureOptions = USUAL) -> OrderedTask:
    """Load one task with its data, or return what was loaded before where the task has not changed.

    Args:
        name: a task, or a group of one.
        split: which split, as in `load_tasks`.
        options: how it is measured.

    Raises:
        EvaluationError: as in `load_tasks`, or the name is that of a group of several tasks.
        UnknownNameError: there is no such task.
    """
    definition = task_fingerprint([name], options)[name]
    with _loading:
        return _ordered_task(name, split, options.model_dump_json(exclude={"log_samples", "batch_size"}), definition)


@lru_cache(maxsize=64)
def _ordered_task(name: str, split: Split, options: str, definition: str) -> OrderedTask:  # noqa: ARG001 - part of the key
    asked = MeasureOptions.model_validate_json(options)
    tasks = load_tasks([name], split, asked)["tasks"]
    if len(tasks) > 1:
        raise EvaluationError(f"{name!r} is a group of {len(tasks)} tasks: {', '.join(tasks)}. Name the tasks.")
    ((own, task),) = tasks.items()
    return OrderedTask(own, task, order_of(own, len(task.eval_docs), asked.seed), asked.seed)


def split_items(tasks: Sequence[str], split: Split, options: MeasureOptions = USUAL) -> dict[str, SplitItems]:
    """Return the items of tasks, groups of tasks replaced by their members.

    Args:
        tasks: names of tasks, groups or tags.
        split: which split.
        options: how they are measured.

    Raises:
        EvaluationError: as in `load_tasks`.
        UnknownNameError: there is no such task.
    """
    names = [member for name in tasks for member in load_tasks([name], split, options)["tasks"]]
    return {name: _items_of(ordered_task(name, split, options), split) for name in dict.fromkeys(names)}


def check_validation_items(tasks: Sequence[str], items: int, options: MeasureOptions = USUAL) -> dict[str, SplitItems]:
    """Return the validation items of tasks, none of the first `items` of which may be in what is the test split.

    Args:
        tasks: names of tasks, groups or tags.
        items: number of items of each that will be used, from the first of the order on.
        options: how they are measured.

    Raises:
        EvaluationError: a task has no validation split, fewer items than asked, no test split beside it, or items
            that are also in its test split; or as in `load_tasks`.
        UnknownNameError: there is no such task.
    """
    found = split_items(tasks, "validation", options)
    for name, one in found.items():
        if one.count < items:
            raise EvaluationError(
                f"Task {name!r} has {one.count:,} validation items, and {items:,} are asked for. Ask for at most these."
            )
        if not one.has_test:
            raise EvaluationError(
                f"Task {name!r} has no test split: what is chosen on its validation items could be measured on no "
                "others. Name a task that has both."
            )
        shared = sum(place < items for place in one.in_test)
        if shared:
            raise EvaluationError(
                f"{shared:,} of the first {items:,} validation items of task {name!r} are also in its test split, so "
                "that its test scores would not be those of unseen items. Name another task, or mend its data."
            )
    return found


def _items_of(ordered: OrderedTask, split: Split) -> SplitItems:
    task = copy.copy(ordered.task)
    vars(task).pop("has_test_docs", None)  # as `load_tasks` sets it for the validation split
    has_test = bool(task.has_test_docs())
    tested = {item_digest(task, document) for document in task.test_docs()} if has_test else set()
    documents = ordered.documents(ordered.order) if tested else []
    return SplitItems(
        task=ordered.name,
        split=split,
        count=len(ordered.order),
        higher_is_better={name: bool(value) for name, value in task.higher_is_better().items()},
        has_test=has_test,
        in_test=tuple(place for place, one in enumerate(documents) if item_digest(task, one) in tested),
    )
