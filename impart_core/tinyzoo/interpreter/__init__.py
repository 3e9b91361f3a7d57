"""Interprets one-line answers: nothing that a model wrote is ever compiled or run by Python.

An answer is parsed into a syntax tree, held against a whitelist (`syntax`), and walked (`walk`). Values are plain
numbers, texts and containers. Names stand for whitelisted functions (`functions`), methods are whitelisted by type
(`methods`), and no other attribute can be read. Work is counted in steps and sizes are bounded (`bounds`), so that a
verdict depends on no clock and no machine.
"""

from impart_core.tinyzoo.interpreter.bounds import ExpressionError
from impart_core.tinyzoo.interpreter.walk import evaluate_expression, interpret

__all__ = ["ExpressionError", "evaluate_expression", "interpret"]
