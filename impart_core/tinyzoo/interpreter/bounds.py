"""How much an expression may do: steps, sizes of values, and which values there are."""

from collections.abc import Iterator
from types import GeneratorType
from typing import Any

MAX_STEPS = 100_000  # for one input; a right answer takes fewer than 200
MAX_SIZE = 10_000  # characters and items of a value, all that it holds included
MAX_BITS = 4_096  # of an integer
MAX_HASHED = 1_000  # entries of a set or dict: colliding hashes make its work quadratic

_SIZED = (str, range)
_CONTAINERS = (list, tuple, dict, set)
# What the operations of Python raise on values that do not fit. RecursionError is a RuntimeError.
FAILURES = (TypeError, ValueError, ArithmeticError, LookupError, MemoryError, RuntimeError)


class ExpressionError(Exception):
    """An answer is no expression that can be interpreted, or its evaluation failed; it never reaches a user."""


class Budget:
    """The steps that are left for one evaluation."""

    def __init__(self, steps: int = MAX_STEPS) -> None:
        """Start with this many steps."""
        self._left = steps

    def spend(self, steps: int = 1) -> None:
        """Take steps away.

        Raises:
            ExpressionError: none are left.
        """
        self._left -= steps
        if self._left < 0:
            raise ExpressionError("It takes too many steps.")

    def checked(self, value: Any) -> Any:
        """Return a value that an operation gave, if it is a plain one and not too large.

        Raises:
            ExpressionError: it is neither, or no steps are left.
        """
        self.spend(1 + size_of(value) // 16)
        return value

    def iterate(self, value: Any) -> Iterator[Any]:
        """Return an iterator over the items of a value, each at the price of a step; those of a set in their order.

        Raises:
            TypeError: it has no items; at once, as Python's own functions of iterables do.
            ExpressionError: no steps are left, when an item is drawn.
        """
        return self._priced(iter(sorted(value) if type(value) is set else value))

    def _priced(self, items: Iterator[Any]) -> Iterator[Any]:
        for item in items:
            self.spend()
            yield item

    def collect(self, value: Any) -> list[Any]:
        """Return the items of a value; what is drawn from a generator is bounded too.

        Raises:
            TypeError: it has no items.
            ExpressionError: they are too large together, or no steps are left.
        """
        items, size = [], 0
        for item in self.iterate(value):
            size += size_of(item)
            if size > MAX_SIZE:
                raise ExpressionError("A value is too large.")
            items.append(item)
        self.spend(size // 16)
        return items


def size_of(value: Any) -> int:
    """Return the size of a plain value: its characters, items and words of integers, all that it holds included.

    An item that stands in several places counts in each, as it does for whoever writes the value out.

    Raises:
        ExpressionError: the value, or one in it, is too large or of a type that expressions do not have.
    """
    size, waiting = 0, [value]
    while waiting:
        part = waiting.pop()
        kind = type(part)
        size += 1
        if kind is int:
            if part.bit_length() > MAX_BITS:
                raise ExpressionError("An integer is too large.")
            size += part.bit_length() // 64
        elif kind in _SIZED:
            size += len(part)
        elif kind in _CONTAINERS:
            if kind is set and part is not value:
                raise ExpressionError("A set is inside of another value.")
            if kind in (set, dict) and len(part) > MAX_HASHED:
                raise ExpressionError("A set or dict is too large.")
            size += len(part)  # before its items are looked at: some thousand references are refused at once
            waiting.extend([*part.keys(), *part.values()] if kind is dict else part)
        elif part is not None and kind not in (bool, float):
            raise ExpressionError(f"It makes a value of type {kind.__name__}.")
        if size > MAX_SIZE:
            raise ExpressionError("A value is too large.")
    return size


def is_lazy(value: Any) -> bool:
    """Say whether a value is a generator, which can only be iterated over."""
    return type(value) is GeneratorType
