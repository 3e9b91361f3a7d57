"""Worded arithmetic: the model writes the sum and its result, and the result is parsed from what it wrote."""

import re
from collections.abc import Mapping
from random import Random
from typing import Any

from impart_core.tinyzoo.problems.item import Item, Problem
from impart_core.tinyzoo.words import NAMES, THINGS

_Templates = tuple[str, ...]
_PLUS: _Templates = (
    "{n} has {a} {t} and buys {b} more. How many now?",
    "{n} finds {a} {t}, then {b} more. How many in all?",
    "There are {a} {t} in a box and {b} in a bag. How many together?",
    "{n} owns {a} {t} and {m} owns {b}. How many do they own?",
)
_MINUS: _Templates = (
    "{n} has {a} {t} and sells {b}. How many are left?",
    "{n} had {a} {t} but lost {b}. How many remain?",
    "Of {a} {t}, {n} gives {b} to {m}. How many stay?",
    "There were {a} {t} and {b} broke. How many are whole?",
)
_TIMES: _Templates = (
    "{n} fills {a} bags with {b} {t} each. How many {t}?",
    "Each of {a} boxes holds {b} {t}. How many in all?",
    "{n} buys {b} {t} a day for {a} days. How many?",
)
_PLUS_MINUS: _Templates = (
    "{n} has {a} {t}, finds {b} and sells {c}. How many now?",
    "{n} had {a} {t}, got {b} from {m}, then lost {c}. How many?",
)


def draw(rng: Random) -> Item:
    """Draw a story with one or two steps of arithmetic.

    Args:
        rng: source of all choices.

    Returns:
        An item whose answer is the chain of sums ("14+8=22-5=17") and whose spec holds its last `result`.
    """
    kind = rng.choice("++--*#")
    a, b, c = rng.randint(2, 79), rng.randint(2, 20), rng.randint(2, 20)
    if kind == "+":
        templates, result, answer = _PLUS, a + b, f"{a}+{b}={a + b}"
    elif kind == "-":
        a, result = a + b, a
        templates, answer = _MINUS, f"{a}-{b}={result}"
    elif kind == "*":
        a, b = rng.randint(2, 12), rng.randint(2, 9)
        templates, result, answer = _TIMES, a * b, f"{a}*{b}={a * b}"
    else:
        a += c
        templates, result = _PLUS_MINUS, a + b - c
        answer = f"{a}+{b}={a + b}-{c}={result}"
    n, m = rng.sample(NAMES, 2)
    story = rng.choice(templates).format(n=n, m=m, a=a, b=b, c=c, t=rng.choice(THINGS))
    return Item(prompt=f"{story}\nAnswer:", answer=answer, spec={"result": result})


def parse(text: str) -> int | None:
    """Return the number that a text gives as its result.

    Args:
        text: what the model wrote; only its first line counts.

    Returns:
        The number after the last equals sign, or the last number when there is no equals sign; None when
        there is no number.
    """
    line = text.strip().split("\n")[0]
    if "=" in line:
        found = re.fullmatch(r"\s*(-?\d{1,9})\D*", line.rsplit("=", 1)[1])
        return int(found[1]) if found else None
    numbers = re.findall(r"(?<!\d)\d{1,9}(?!\d)", line)
    return int(numbers[-1]) if numbers else None


def check(spec: Mapping[str, Any], text: str) -> bool:
    """Say whether the result parsed from `text` is the one in `spec`."""
    return parse(text) == int(spec["result"])


MATH = Problem(name="math", draw=draw, check=check)
