"""A first look at an expression that a model wrote: refuse garbage before a process has to."""

import ast

_ALLOWED = (
    ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Store, ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp,
    ast.IfExp, ast.Call, ast.Attribute, ast.Subscript, ast.Slice, ast.List, ast.Tuple, ast.ListComp,
    ast.GeneratorExp, ast.comprehension, ast.operator, ast.unaryop, ast.cmpop, ast.boolop, ast.keyword,
)  # fmt: skip
MAX_CHARACTERS = 200


def problem_with(source: str) -> str | None:
    """Say why a text is not an expression worth evaluating.

    Args:
        source: the text.

    Returns:
        A sentence, or None when the text is one short expression of x without private names.
    """
    if len(source) > MAX_CHARACTERS:
        return f"It is longer than {MAX_CHARACTERS} characters."
    try:
        tree = ast.parse(source.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "It is not a Python expression."
    for node in ast.walk(tree):
        if not isinstance(node, _ALLOWED):
            return f"It uses {type(node).__name__}."
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        if name.startswith("_") or name in ("format", "format_map"):
            return f"It uses the name {name}."
    return None
