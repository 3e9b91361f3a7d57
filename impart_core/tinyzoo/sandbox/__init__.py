"""Executes one-line answers in a restricted child process."""

from impart_core.tinyzoo.sandbox.client import Sandbox, evaluate_expression
from impart_core.tinyzoo.sandbox.syntax import problem_with

__all__ = ["Sandbox", "evaluate_expression", "problem_with"]
