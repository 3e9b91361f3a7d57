"""The methods that an answer may call, by the exact type of their value. None of them changes it."""

from typing import Any

from impart_core.tinyzoo.interpreter.bounds import MAX_SIZE, Budget, ExpressionError

_TEXT = (
    "capitalize casefold center count endswith find index isalnum isalpha isdecimal isdigit islower isnumeric isspace "
    "istitle isupper join ljust lower lstrip partition removeprefix removesuffix replace rfind rindex rjust rpartition "
    "rsplit rstrip split splitlines startswith strip swapcase title upper zfill"
)
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(_TEXT.split()),
    list: frozenset({"copy", "count", "index"}),
    tuple: frozenset({"count", "index"}),
    dict: frozenset({"get"}),
}
_WIDENING = frozenset({"center", "ljust", "rjust", "zfill"})


def call_method(budget: Budget, value: Any, name: str, values: list[Any], named: dict[str, Any]) -> Any:
    """Call a method of a plain value.

    Args:
        budget: pays for it.
        value: the value.
        name: the method's name.
        values: its arguments.
        named: its arguments by name.

    Raises:
        ExpressionError: there is no such method in the whitelist, or what it gives would be too large.
    """
    if name not in _METHODS.get(type(value), frozenset()):
        raise ExpressionError(f"There is no method {name} of {type(value).__name__}.")
    if name == "join":
        values = [budget.collect(one) for one in values]
    for one in (value, *values, *named.values()):
        budget.checked(one)
    _check_growth(value, name, values)
    return budget.checked(getattr(value, name)(*values, **named))


def _check_growth(value: Any, name: str, values: list[Any]) -> None:
    """Refuse what would make a text too large; arguments of wrong types are left to the method."""
    size = 0
    if name in _WIDENING and values and isinstance(values[0], int):
        size = values[0]
    elif name == "join" and values:
        size = len(value) * len(values[0])
    elif name == "replace" and len(values) > 1 and type(values[0]) is type(values[1]) is str:
        size = value.count(values[0]) * len(values[1])
    if size > MAX_SIZE:
        raise ExpressionError("A value is too large.")
