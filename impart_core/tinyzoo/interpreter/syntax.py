"""The syntax that an answer may use: anything else is refused before a node of it is looked at."""

import ast
import warnings

from impart_core.tinyzoo.interpreter.bounds import ExpressionError

MAX_CHARACTERS = 200
MAX_DEPTH = 40  # of the tree: the interpreter recurses over it
_ALLOWED = (
    ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Store, ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp,
    ast.IfExp, ast.Call, ast.Attribute, ast.Subscript, ast.Slice, ast.List, ast.Tuple, ast.ListComp,
    ast.GeneratorExp, ast.comprehension, ast.operator, ast.unaryop, ast.cmpop, ast.boolop, ast.keyword,
)  # fmt: skip
_CONSTANTS = (int, float, str, bool, type(None))


def parse(source: str) -> ast.expr:
    """Parse an expression. Python's parser runs nothing, and brings all names to Unicode's NFKC form.

    Args:
        source: the text.

    Returns:
        The tree of one short expression without private names, in which attributes are methods that are called.

    Raises:
        ExpressionError: it is none.
    """
    if len(source) > MAX_CHARACTERS:
        raise ExpressionError(f"It is longer than {MAX_CHARACTERS} characters.")
    try:
        with warnings.catch_warnings(action="ignore"):  # about escapes such as "\\d"
            tree = ast.parse(source.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ExpressionError("It is not a Python expression.") from None
    waiting: list[tuple[ast.AST, int]] = [(tree.body, 1)]
    while waiting:
        node, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise ExpressionError("It is nested too deeply.")
        _check(node)
        waiting.extend((child, depth + 1) for child in _inside(node))
    return tree.body


def _inside(node: ast.AST) -> list[ast.AST]:
    """Return the nodes inside of a node; of a called method its value, for it is no attribute that is read."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return [node.func.value, *node.args, *node.keywords]
    return list(ast.iter_child_nodes(node))


def _check(node: ast.AST) -> None:
    if not isinstance(node, _ALLOWED):
        raise ExpressionError(f"It uses {type(node).__name__}.")
    if isinstance(node, ast.Attribute):
        raise ExpressionError(f"It reads the attribute {node.attr}.")
    if isinstance(node, ast.Constant) and type(node.value) not in _CONSTANTS:
        raise ExpressionError(f"It uses a constant of type {type(node.value).__name__}.")
    if isinstance(node, ast.Name) and node.id.startswith("_"):
        raise ExpressionError(f"It uses the name {node.id}.")
    if isinstance(node, ast.keyword) and node.arg is None:
        raise ExpressionError("It unpacks keyword arguments.")
    if isinstance(node, ast.comprehension) and node.is_async:
        raise ExpressionError("It uses an asynchronous comprehension.")
