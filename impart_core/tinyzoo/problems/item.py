"""What a problem is: it draws items from a random generator and checks an answer to one of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        prompt: the text the model continues; at most 100 characters, without trailing white space.
        answer: one right answer, at most 24 characters, on one line.
        spec: what an answer is checked against, as values that JSON can hold.
    """

    prompt: str
    answer: str
    spec: Mapping[str, Any]


@dataclass(frozen=True)
class Problem:
    """A kind of question that one fine-tune of the zoo learns to answer.

    Attributes:
        name: the name of the fine-tune that it belongs to.
        draw: makes one item; equal states of the generator make equal items.
        check: says whether a generated text answers the item with this spec.
    """

    name: str
    draw: Callable[[Random], Item]
    check: Callable[[Mapping[str, Any], str], bool]
