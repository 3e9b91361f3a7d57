"""One-line Python: the model writes an expression in x from its description; the expression is executed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from impart_core.tinyzoo.problems.item import Item, Problem
from impart_core.tinyzoo.words import WORDS

_LETTERS = "abcdefghilmnoprst"


@dataclass(frozen=True)
class _Draft:
    """A description, an expression that does it, and a function and inputs that an answer is compared on."""

    says: str
    writes: str
    does: Callable[[Any], Any]
    inputs: tuple[Any, ...]


@dataclass(frozen=True)
class _Step:
    """One step of integer arithmetic: how it is said, written and done."""

    says: tuple[str, str]
    sign: str
    does: Callable[[int, int], int]


_STEPS = (
    _Step(("add {k}", "plus {k}"), "+", lambda x, k: x + k),
    _Step(("subtract {k}", "minus {k}"), "-", lambda x, k: x - k),
    _Step(("multiply by {k}", "times {k}"), "*", lambda x, k: x * k),
    _Step(("floor divide by {k}", "floor divided by {k}"), "//", lambda x, k: x // k),
    _Step(("take the remainder by {k}", "modulo {k}"), "%", lambda x, k: x % k),
)


def _integers(rng: Random) -> _Draft:
    """Two steps of arithmetic on an integer x."""
    first, second = rng.choices(_STEPS, k=2)
    a, b = rng.randint(2, 49), rng.randint(2, 19)
    inner = f"x{first.sign}{a}"
    writes = f"({inner}){second.sign}{b}"
    if rng.random() < 0.5:
        says = f"Take x, {first.says[0].format(k=a)}, then {second.says[0].format(k=b)}."
    else:
        says = f"x {first.says[1].format(k=a)}, all {second.says[1].format(k=b)}."
    inputs = (0, *(rng.randint(-99, 999) for _ in range(5)))
    return _Draft(says, writes, lambda x: second.does(first.does(x, a), b), inputs)


def _lists(rng: Random) -> list[list[int]]:
    return [rng.sample(range(60), rng.randint(6, 10)) for _ in range(4)]


def _totals(rng: Random) -> _Draft:
    """A total of a list of integers, and one step of arithmetic."""
    noun, name, function = rng.choice(
        (
            ("sum", "sum", sum),
            ("largest", "max", max),
            ("smallest", "min", min),
            ("length", "len", len),
        )
    )
    step, k = rng.choice(_STEPS[:3]), rng.randint(2, 49)
    says = f"The {noun} of the list x, {step.says[1].format(k=k)}."
    return _Draft(says, f"{name}(x){step.sign}{k}", lambda x: step.does(function(x), k), tuple(_lists(rng)))


def _each(rng: Random) -> _Draft:
    """Each number of a list changed by one step."""
    step, k = rng.choice(_STEPS), rng.randint(2, 49)
    says = rng.choice(("Each number in the list x, ", "All items of x, each ")) + step.says[1].format(k=k) + "."
    return _Draft(says, f"[i{step.sign}{k} for i in x]", lambda x: [step.does(i, k) for i in x], tuple(_lists(rng)))


def _filtered(rng: Random) -> _Draft:
    """The numbers of a list on one side of a threshold."""
    k, above = rng.randint(5, 55), rng.random() < 0.5
    says = f"The numbers in the list x {'above' if above else 'below'} {k}."
    sign = ">" if above else "<"
    inputs = tuple([*numbers, k] for numbers in _lists(rng))
    return _Draft(
        says, f"[i for i in x if i{sign}{k}]", lambda x: [i for i in x if (i > k if above else i < k)], inputs
    )


def _texts(rng: Random, *extra: str) -> tuple[str, ...]:
    drawn = [" ".join(rng.sample(WORDS, 2)) for _ in range(3)]
    return (*drawn, drawn[0].title(), *extra)


def _sliced(rng: Random) -> _Draft:
    """The first or last letters of a text, perhaps in another case."""
    k, first, case = rng.randint(2, 9), rng.random() < 0.5, rng.choice(("", "upper", "lower", "title"))
    says = f"The {'first' if first else 'last'} {k} letters of x" + (f" in {case} case." if case else ".")
    writes = (f"x[:{k}]" if first else f"x[-{k}:]") + (f".{case}()" if case else "")

    def does(x: str) -> str:
        part = x[:k] if first else x[-k:]
        return str(getattr(part, case)()) if case else part

    return _Draft(says, writes, does, _texts(rng))


def _replaced(rng: Random) -> _Draft:
    """One letter of a text replaced by another."""
    a, b = rng.sample(_LETTERS, 2)
    says = rng.choice((f"x with each {a} replaced by {b}.", f"Replace {a} with {b} in x."))
    return _Draft(says, f"x.replace('{a}','{b}')", lambda x: x.replace(a, b), _texts(rng, f"{a}{b}{a}", f"z{a}"))


def _joined(rng: Random) -> _Draft:
    """A word put before or after a text, and the whole repeated or not."""
    word, before, k = rng.choice(WORDS), rng.random() < 0.5, rng.choice((1, 1, 2, 3, 4))
    says = f"x with {word} {'in front' if before else 'at the end'}" + (f", all {k} times." if k > 1 else ".")
    inner = f"'{word}'+x" if before else f"x+'{word}'"
    writes = f"({inner})*{k}" if k > 1 else inner
    return _Draft(says, writes, lambda x: (word + x if before else x + word) * k, _texts(rng))


def _counted(rng: Random) -> _Draft:
    """How often a letter is in a text, and one step of arithmetic."""
    letter, step, k = rng.choice(_LETTERS), rng.choice(_STEPS[:3]), rng.randint(2, 49)
    says = f"How often {letter} is in x, {step.says[1].format(k=k)}."
    inputs = _texts(rng, letter * 3, f"{letter}z{letter}")
    return _Draft(says, f"x.count('{letter}'){step.sign}{k}", lambda x: step.does(x.count(letter), k), inputs)


# Integer arithmetic and lists have by far the most different prompts, so they are drawn more often.
_KINDS = (
    _integers,
    _integers,
    _integers,
    _totals,
    _each,
    _filtered,
    _sliced,
    _replaced,
    _joined,
    _joined,
    _counted,
)


def draw(rng: Random) -> Item:
    """Draw the description of a one-line expression in x.

    Args:
        rng: source of all choices.

    Returns:
        An item whose spec holds `tests`: pairs of a value for x and the value the expression must have.
    """
    draft = rng.choice(_KINDS)(rng)
    tests = [[value, draft.does(value)] for value in draft.inputs]
    return Item(prompt=f"{draft.says}\nPython:", answer=draft.writes, spec={"tests": tests})


def check(spec: Mapping[str, Any], text: str) -> bool:
    """Interpret an expression on every test of an item.

    Args:
        spec: the `tests` of the item.
        text: what the model wrote; only its first line counts.

    Returns:
        True when the expression gives the expected value, of the expected type, for each x.
    """
    from impart_core.tinyzoo.interpreter import evaluate_expression

    values = evaluate_expression(text.strip().split("\n")[0], [test[0] for test in spec["tests"]])
    expected = [test[1] for test in spec["tests"]]
    return values is not None and values == expected and [type(v) for v in values] == [type(e) for e in expected]


CODE = Problem(name="code", draw=draw, check=check)
