"""The functions that an answer may call by name, each bounded by the budget of its evaluation."""

import ast
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from impart_core.tinyzoo.interpreter.bounds import MAX_BITS, MAX_HASHED, MAX_SIZE, Budget, ExpressionError
from impart_core.tinyzoo.interpreter.operations import binary, check_power

_MISSING = object()


class Function:
    """A function of the whitelist as a value: it can be called or handed on, and nothing else."""

    def __init__(self, body: Callable[..., Any]) -> None:
        """Wrap a Python function whose first parameter is the budget."""
        self._body = body

    def __call__(self, budget: Budget, *values: Any, **named: Any) -> Any:
        """Return what the function gives; a generator, or a plain value within bounds."""
        budget.spend()
        given = self._body(budget, *values, **named)
        return given if inspect.isgenerator(given) else budget.checked(given)


def _called(budget: Budget, function: Any, *values: Any) -> Any:
    if not isinstance(function, Function):
        raise TypeError("not a function")
    return function(budget, *values)


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of plain values, which are checked before Python gets them."""

    def body(budget: Budget, *values: Any) -> Any:
        return function(*map(budget.checked, values))

    return body


def _of_items(function: Callable[[list[Any]], Any]) -> Callable[..., Any]:
    """Return a function of one optional iterable, whose items are collected before Python gets them."""

    def body(budget: Budget, values: Any = (), /) -> Any:
        items = budget.collect(values)
        if function in (set, dict) and len(items) > MAX_HASHED:
            raise ExpressionError("A set or dict is too large.")
        return function(items)

    return body


def _all(budget: Budget, values: Any, /) -> bool:
    return all(budget.iterate(values))


def _any(budget: Budget, values: Any, /) -> bool:
    return any(budget.iterate(values))


def _enumerate(budget: Budget, iterable: Any, start: int = 0) -> Iterator[Any]:
    return (pair for pair in enumerate(budget.iterate(iterable), start))


def _filter(budget: Budget, function: Any, values: Any, /) -> Iterator[Any]:
    def keeps(value: Any) -> Any:
        return value if function is None else _called(budget, function, value)

    return (value for value in budget.iterate(values) if keeps(value))


def _map(budget: Budget, function: Any, /, *iterables: Any) -> Iterator[Any]:
    if not iterables:
        raise TypeError("map() needs an iterable")
    return (_called(budget, function, *values) for values in zip(*map(budget.iterate, iterables), strict=False))


def _zip(budget: Budget, *iterables: Any) -> Iterator[Any]:
    return (values for values in zip(*map(budget.iterate, iterables), strict=False))


def _reversed(budget: Budget, values: Any, /) -> Iterator[Any]:
    return budget.iterate(budget.checked(values)[::-1])


def _range(budget: Budget, *bounds: Any) -> range:
    values = range(*map(budget.checked, bounds))
    if values and abs(values[-1] - values[0]) // abs(values.step) >= MAX_SIZE:
        raise ExpressionError("A value is too large.")
    return values


def _sorted(budget: Budget, values: Any, /, *, key: Any = None, reverse: Any = False) -> list[Any]:
    items = budget.collect(values)
    keys = _keys(budget, items, key)
    return [items[i] for i in sorted(range(len(items)), key=keys.__getitem__, reverse=budget.checked(reverse))]


def _written(function: Callable[[Any], str]) -> Callable[..., Any]:
    """Return a function that writes a value out; not a set, whose order changes from process to process."""

    def body(budget: Budget, value: Any = "", /) -> str:
        if type(value) is set:
            raise ExpressionError("It writes out a set.")
        return function(budget.checked(value))

    return body


def _extreme(choose: Callable[..., int]) -> Callable[..., Any]:
    def body(budget: Budget, *values: Any, key: Any = None, default: Any = _MISSING) -> Any:
        if len(values) > 1 and default is not _MISSING:
            raise TypeError("a default needs one iterable")
        items = budget.collect(values[0] if len(values) == 1 else values)
        if not items and default is not _MISSING:
            return default
        keys = _keys(budget, items, key)
        return items[choose(range(len(items)), key=keys.__getitem__)]

    return body


def _keys(budget: Budget, items: list[Any], key: Any) -> list[Any]:
    return items if key is None else [_called(budget, key, item) for item in items]


def _sum(budget: Budget, values: Any, /, start: Any = 0) -> Any:
    if type(start) is str:
        raise TypeError("sum() does not join texts")
    total = budget.checked(start)
    for value in budget.iterate(values):
        total = binary(budget, ast.Add, total, value)
    return total


def _power(budget: Budget, base: Any, exponent: Any, modulus: Any = None) -> Any:
    values = [budget.checked(value) for value in (base, exponent, modulus)]
    if modulus is None:
        check_power(base, exponent)
    elif type(exponent) is type(modulus) is int:
        budget.spend(exponent.bit_length() * (1 + modulus.bit_length() // 64))
    return pow(*values)


def _integer(budget: Budget, value: Any = 0, /, base: Any = _MISSING) -> int:
    more = [] if base is _MISSING else [budget.checked(base)]
    return int(budget.checked(value), *more)


def _round(budget: Budget, number: Any, ndigits: Any = None) -> Any:
    if ndigits is not None and abs(ndigits) > MAX_BITS:
        raise ExpressionError("It rounds to too many digits.")
    return round(budget.checked(number), budget.checked(ndigits))


_BODIES: dict[str, Callable[..., Any]] = {
    "abs": _plain(abs),
    "all": _all,
    "any": _any,
    "bool": _plain(bool),
    "dict": _of_items(dict),
    "divmod": _plain(divmod),
    "enumerate": _enumerate,
    "filter": _filter,
    "float": _plain(float),
    "int": _integer,
    "len": _plain(len),
    "list": _of_items(list),
    "map": _map,
    "max": _extreme(max),
    "min": _extreme(min),
    "pow": _power,
    "range": _range,
    "repr": _written(repr),
    "reversed": _reversed,
    "round": _round,
    "set": _of_items(set),
    "sorted": _sorted,
    "str": _written(str),
    "sum": _sum,
    "tuple": _of_items(tuple),
    "zip": _zip,
}
FUNCTIONS = {name: Function(body) for name, body in _BODIES.items()}
