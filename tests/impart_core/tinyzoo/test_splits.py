"""Items are drawn the same each time, and no prompt is in two splits."""

from itertools import islice

import pytest

from impart_core.base.errors import UnknownNameError
from impart_core.tinyzoo import FINE_TUNES
from impart_core.tinyzoo.splits import SPLIT_ITEMS, items, split_of, stream
from impart_core.tinyzoo.tokenizer import CHARACTERS


@pytest.mark.parametrize("task", FINE_TUNES)
def test_splits_are_disjoint_by_prompt(task: str) -> None:
    validation = {item.prompt for item in items(task, "validation")}
    test = {item.prompt for item in items(task, "test")}
    train = {item.prompt for item in islice(stream(task, "train"), 20_000)}
    assert len(validation) == len(test) == SPLIT_ITEMS == 300
    assert not (validation & test or validation & train or test & train)


@pytest.mark.parametrize("task", FINE_TUNES)
def test_a_prompt_alone_decides_its_split(task: str) -> None:
    for split in ("train", "validation", "test"):
        assert {split_of(item.prompt) for item in islice(stream(task, split, seed=5), 200)} == {split}


@pytest.mark.parametrize("task", FINE_TUNES)
def test_items_are_the_same_each_time(task: str) -> None:
    assert items(task, "test") == items(task, "test")
    assert list(islice(stream(task, "train", 1), 50)) == list(islice(stream(task, "train", 1), 50))
    assert list(islice(stream(task, "train", 1), 50)) != list(islice(stream(task, "train", 2), 50))


@pytest.mark.parametrize("task", FINE_TUNES)
def test_items_are_short_and_in_the_vocabulary(task: str) -> None:
    for item in islice(stream(task, "train"), 3_000):
        assert len(item.prompt) <= 100
        assert 0 < len(item.answer) <= 24
        assert "\n" not in item.answer
        assert item.prompt == item.prompt.rstrip()
        assert set(item.prompt + item.answer) <= set(CHARACTERS)


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'math'"):
        items("maths", "test")


def test_test_items_are_fixed() -> None:
    first = {task: items(task, "test", 1)[0].prompt for task in FINE_TUNES}
    assert first == {
        "math": "Eva buys 4 apples a day for 2 days. How many?\nAnswer:",
        "code": "The sum of the list x, times 42.\nPython:",
        "chat": "Please write jade, backwards, thrice, ending with !\nReply:",
    }
