"""The three kinds of question of the zoo, by the name of the fine-tune that answers them."""

from impart_core.base.registry import Registry
from impart_core.tinyzoo.problems.chat import CHAT
from impart_core.tinyzoo.problems.code import CODE
from impart_core.tinyzoo.problems.item import Item, Problem
from impart_core.tinyzoo.problems.math import MATH

PROBLEMS: Registry[Problem] = Registry("tiny-zoo task")
for _problem in (MATH, CODE, CHAT):
    PROBLEMS.register(_problem.name, _problem)

__all__ = ["PROBLEMS", "Item", "Problem"]
