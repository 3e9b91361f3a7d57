"""Walks the tree of an expression and gives its value."""

import ast
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from impart_core.tinyzoo.interpreter.bounds import FAILURES, Budget, ExpressionError
from impart_core.tinyzoo.interpreter.functions import FUNCTIONS, Function
from impart_core.tinyzoo.interpreter.methods import call_method
from impart_core.tinyzoo.interpreter.operations import binary, compare, unary
from impart_core.tinyzoo.interpreter.syntax import parse

Names = dict[str, Any]


def evaluate_expression(source: str, inputs: Sequence[Any]) -> list[Any] | None:
    """Evaluate an expression that a model wrote, with x set to each input.

    Args:
        source: the text.
        inputs: values for x that JSON can hold.

    Returns:
        One value for each input; None when the text was refused, failed, or did too much.
    """
    try:
        return interpret(source, inputs)
    except ExpressionError:
        return None


def interpret(source: str, inputs: Sequence[Any]) -> list[Any]:
    """Evaluate an expression with x set to each input.

    Args:
        source: the text.
        inputs: values for x that JSON can hold.

    Returns:
        One value for each input, as JSON holds it: a tuple is a list, and there are no sets.

    Raises:
        ExpressionError: the text is refused, its evaluation fails or does too much, or JSON cannot hold a value.
    """
    tree = parse(source)
    return [_evaluated(tree, value) for value in inputs]


def _evaluated(tree: ast.expr, value: Any) -> Any:
    try:
        walk = _Walk(Budget())
        return json.loads(json.dumps(walk.budget.checked(walk.value(tree, {"x": value}))))
    except FAILURES as error:
        raise ExpressionError(f"It fails with {type(error).__name__}.") from None


class _Walk:
    """One evaluation: the value of each node under the names that are bound around it."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget

    def value(self, node: ast.expr, names: Names) -> Any:
        """Return the value of a node: plain, a generator or a function."""
        self.budget.spend()
        return _NODES[type(node)](self, node, names)

    def constant(self, node: ast.Constant, _: Names) -> Any:
        return node.value

    def name(self, node: ast.Name, names: Names) -> Any:
        if node.id in names:
            return names[node.id]
        if node.id in FUNCTIONS:
            return FUNCTIONS[node.id]
        raise ExpressionError(f"There is no {node.id}.")

    def binary(self, node: ast.BinOp, names: Names) -> Any:
        return binary(self.budget, type(node.op), self.value(node.left, names), self.value(node.right, names))

    def unary(self, node: ast.UnaryOp, names: Names) -> Any:
        return unary(self.budget, type(node.op), self.value(node.operand, names))

    def compare(self, node: ast.Compare, names: Names) -> Any:
        left = self.value(node.left, names)
        for kind, comparator in zip(node.ops, node.comparators, strict=True):
            right = self.value(comparator, names)
            if not compare(self.budget, type(kind), left, right):
                return False
            left = right
        return True

    def boolean(self, node: ast.BoolOp, names: Names) -> Any:
        stops = isinstance(node.op, ast.Or)
        value: Any = None
        for part in node.values:
            value = self.value(part, names)
            if bool(value) is stops:
                break
        return value

    def conditional(self, node: ast.IfExp, names: Names) -> Any:
        return self.value(node.body if self.value(node.test, names) else node.orelse, names)

    def sequence(self, node: ast.List | ast.Tuple, names: Names) -> Any:
        items = [self.value(item, names) for item in node.elts]
        return self.budget.checked(items if isinstance(node, ast.List) else tuple(items))

    def subscript(self, node: ast.Subscript, names: Names) -> Any:
        value = self.budget.checked(self.value(node.value, names))
        if not isinstance(node.slice, ast.Slice):
            return self.budget.checked(value[self.budget.checked(self.value(node.slice, names))])
        ends = (node.slice.lower, node.slice.upper, node.slice.step)
        return self.budget.checked(value[slice(*(None if end is None else self.value(end, names) for end in ends))])

    def call(self, node: ast.Call, names: Names) -> Any:
        if isinstance(node.func, ast.Attribute):
            owner = self.value(node.func.value, names)
            values, named = self._arguments(node, names)
            return call_method(self.budget, owner, node.func.attr, values, named)
        function = self.value(node.func, names)
        values, named = self._arguments(node, names)
        if not isinstance(function, Function):
            raise ExpressionError("It calls what is no function.")
        return function(self.budget, *values, **named)

    def _arguments(self, node: ast.Call, names: Names) -> tuple[list[Any], dict[str, Any]]:
        values = [self.value(argument, names) for argument in node.args]
        return values, {str(named.arg): self.value(named.value, names) for named in node.keywords}

    def listed(self, node: ast.ListComp, names: Names) -> Any:
        return self.budget.checked(self.budget.collect(self.generated(node, names)))

    def generated(self, node: ast.ListComp | ast.GeneratorExp, names: Names) -> Iterator[Any]:
        first = self.value(node.generators[0].iter, names)  # at once, and with the names around the comprehension
        return self._drawn(node, 0, self.budget.iterate(first), names)

    def _drawn(
        self, node: ast.ListComp | ast.GeneratorExp, depth: int, items: Iterator[Any], names: Names
    ) -> Iterator[Any]:
        clause, last = node.generators[depth], depth + 1 == len(node.generators)
        for item in items:
            inner = {**names}
            self._bind(clause.target, item, inner)
            if not all(self.value(condition, inner) for condition in clause.ifs):
                continue
            if last:
                yield self.value(node.elt, inner)
            else:
                further = self.value(node.generators[depth + 1].iter, inner)
                yield from self._drawn(node, depth + 1, self.budget.iterate(further), inner)

    def _bind(self, target: ast.expr, value: Any, names: Names) -> None:
        self.budget.spend()
        if isinstance(target, ast.Name):
            names[target.id] = value
        elif isinstance(target, ast.Tuple | ast.List):
            for part, item in zip(target.elts, self.budget.collect(value), strict=True):
                self._bind(part, item, names)
        else:
            raise ExpressionError(f"It assigns to {type(target).__name__}.")


_NODES: dict[type[ast.expr], Callable[..., Any]] = {
    ast.Constant: _Walk.constant,
    ast.Name: _Walk.name,
    ast.BinOp: _Walk.binary,
    ast.UnaryOp: _Walk.unary,
    ast.Compare: _Walk.compare,
    ast.BoolOp: _Walk.boolean,
    ast.IfExp: _Walk.conditional,
    ast.List: _Walk.sequence,
    ast.Tuple: _Walk.sequence,
    ast.Subscript: _Walk.subscript,
    ast.Call: _Walk.call,
    ast.ListComp: _Walk.listed,
    ast.GeneratorExp: _Walk.generated,
}
