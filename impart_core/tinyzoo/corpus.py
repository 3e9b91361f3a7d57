"""What the base is pre-trained on: words, sentences, sums and lines of Python, but none of the task formats."""

from collections.abc import Iterator
from random import Random

from impart_core.tinyzoo.words import COLOURS, NAMES, PLACES, THINGS, WORDS

_VERBS = (
    "has",
    "buys",
    "sells",
    "finds",
    "loses",
    "gives",
    "counts",
    "sees",
    "owns",
    "holds",
    "wants",
    "fills",
)


def _sentence(rng: Random) -> str:
    n, m = rng.sample(NAMES, 2)
    a, b = rng.randint(2, 99), rng.randint(2, 20)
    thing, other = rng.sample(THINGS, 2)
    word, place, colour = rng.choice(WORDS), rng.choice(PLACES), rng.choice(COLOURS)
    return rng.choice(
        (
            f"{n} {rng.choice(_VERBS)} {a} {thing}.",
            f"{n} {rng.choice(_VERBS)} {a} {thing} and {m} {rng.choice(_VERBS)} {b} {other}.",
            f"There are {a} {colour} {thing} in the {place}.",
            f"{n} goes to the {place} with {m} and {b} {thing}.",
            f"The {word} is {colour}, but each of the {b} {thing} is {rng.choice(COLOURS)}.",
            f"In the {place}, {n} {rng.choice(_VERBS)} the {word} for {m}.",
            f"{n} and {m} {rng.choice(('like', 'take', 'keep', 'want'))} all the {thing}.",
        )
    )


def _sums(rng: Random) -> str:
    """A few sums on a line: the carry rules are learned here, where every character is a target."""
    return " ".join(_sum(rng) for _ in range(rng.randint(2, 5)))


def _sum(rng: Random) -> str:
    a, b, c = rng.randint(2, 89), rng.randint(2, 20), rng.randint(2, 20)
    kind = rng.choice("++--*#")
    if kind == "+":
        return f"{a}+{b}={a + b}"
    if kind == "-":
        return f"{a + b}-{b}={a}"
    if kind == "*":
        a, b = rng.randint(2, 12), rng.randint(2, 12)
        return f"{a}*{b}={a * b}"
    return f"{a + c}+{b}={a + b + c}-{c}={a + b}"


def _python(rng: Random) -> str:
    a, b = rng.randint(2, 49), rng.randint(2, 19)
    s, t = rng.choice(("+", "-", "*", "//", "%")), rng.choice(("+", "-", "*", "//", "%"))
    word, (p, q) = rng.choice(WORDS), rng.sample("abcdefghilmnoprst", 2)
    left = rng.choice(("y = ", "z = ", "return ", "print ", "w = ", "n = "))
    return left + rng.choice(
        (
            f"(x{s}{a}){t}{b}",
            f"{rng.choice(('sum', 'max', 'min', 'len'))}(x){s}{a}",
            f"[i{s}{a} for i in x]",
            f"[i for i in x if i{rng.choice('<>')}{a}]",
            f"x[:{b}].{rng.choice(('upper', 'lower', 'title'))}()",
            f"x[-{b}:]",
            f"x.replace('{p}','{q}')",
            f"x.count('{p}'){s}{a}",
            f"'{word}'+x",
            f"(x+'{word}')*{b}",
        )
    )


def _letters(rng: Random) -> str:
    """Copying, reversing, sorting and changing the case of words and of random letters."""
    word = rng.choice(WORDS)
    if rng.random() < 0.3:
        word = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 6)))
    return rng.choice(
        (
            f"{word} | {word}",
            f"{word} < {word[::-1]}",
            f"{word} ^ {word.upper()}",
            f"{word} ~ {word.capitalize()}",
            f"{word} # {''.join(sorted(word))}",
            f"{word} @ {word[0]} {word[-1]}",
        )
    )


def _lists(rng: Random) -> str:
    """Words said again in one form, with any separator and end mark."""
    word = rng.choice(WORDS)
    word = rng.choice((word, word.upper(), word.capitalize(), word[::-1]))
    between = rng.choice((" ", ", ", "-", " "))
    words = [word] * rng.randint(1, 4) if rng.random() < 0.5 else rng.sample(WORDS, rng.randint(2, 4))
    return between.join(words) + rng.choice(("", "!", "?", "."))


_KINDS = (
    _sentence,
    _sentence,
    _sentence,
    _sums,
    _sums,
    _sums,
    _python,
    _python,
    _python,
    _letters,
    _letters,
    _lists,
)


def lines(seed: int = 0) -> Iterator[str]:
    """Yield lines of pre-training text without end, each closed by a line feed.

    Args:
        seed: equal seeds yield equal lines.
    """
    rng = Random(f"corpus/{seed}")
    while True:
        yield rng.choice(_KINDS)(rng) + "\n"
