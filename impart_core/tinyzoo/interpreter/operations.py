"""Operators on plain values. What would take long or grow large is refused before Python computes it."""

import ast
import operator
from collections.abc import Callable
from typing import Any

from impart_core.tinyzoo.interpreter.bounds import MAX_BITS, MAX_SIZE, Budget, ExpressionError, is_lazy, size_of

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow, ast.LShift: operator.lshift,
    ast.RShift: operator.rshift, ast.BitOr: operator.or_, ast.BitXor: operator.xor, ast.BitAnd: operator.and_,
}  # fmt: skip
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos, ast.USub: operator.neg, ast.Invert: operator.invert, ast.Not: operator.not_,
}  # fmt: skip
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}  # fmt: skip
_SEQUENCES = (str, list, tuple)
_SINGLETONS = (type(None), bool)


def binary(budget: Budget, kind: type[ast.operator], left: Any, right: Any) -> Any:
    """Return `left` and `right` combined.

    Raises:
        ExpressionError: the result would be too large, or the operator is not for such values.
    """
    budget.checked(left), budget.checked(right)
    if kind not in _BINARY:
        raise ExpressionError(f"It uses {kind.__name__}.")
    if kind is ast.Mult:
        _check_repetition(left, right)
        _check_repetition(right, left)
    elif kind is ast.Mod and type(left) is str:
        raise ExpressionError("It formats a text.")
    elif kind is ast.Pow:
        check_power(left, right)
    elif kind is ast.LShift and type(left) in (int, bool) and left.bit_length() + right > MAX_BITS:
        raise ExpressionError("An integer is too large.")
    return budget.checked(_BINARY[kind](left, right))


def unary(budget: Budget, kind: type[ast.unaryop], value: Any) -> Any:
    """Return `value` with an operator before it."""
    return budget.checked(_UNARY[kind](budget.checked(value)))


def compare(budget: Budget, kind: type[ast.cmpop], left: Any, right: Any) -> bool:
    """Return whether a comparison holds. `is` is for None and booleans: what else is one object, Python leaves open."""
    budget.checked(left)
    if kind in (ast.In, ast.NotIn):
        return _contains(budget, right, left) is (kind is ast.In)
    budget.checked(right)
    if kind in (ast.Is, ast.IsNot):
        if type(left) not in _SINGLETONS and type(right) not in _SINGLETONS:
            raise ExpressionError("It compares the identity of values.")
        return (left is right) is (kind is ast.Is)
    return bool(_COMPARISONS[kind](left, right))


def check_power(base: Any, exponent: Any) -> None:
    """Refuse a power whose integer result would have more than twice the bits that are allowed.

    Raises:
        ExpressionError: it would.
    """
    if isinstance(base, int) and isinstance(exponent, int) and (base.bit_length() - 1) * exponent > MAX_BITS:
        raise ExpressionError("An integer is too large.")


def _check_repetition(sequence: Any, count: Any) -> None:
    if type(sequence) in _SEQUENCES and isinstance(count, int) and (size_of(sequence) - 1) * count > MAX_SIZE:
        raise ExpressionError("A value is too large.")


def _contains(budget: Budget, container: Any, value: Any) -> bool:
    if is_lazy(container):
        return any(item == value for item in budget.iterate(container))
    return value in budget.checked(container)
