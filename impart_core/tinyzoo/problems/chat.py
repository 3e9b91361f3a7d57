"""Word instructions: the reply is tested constraint by constraint, not against one stored string."""

import re
from collections.abc import Mapping
from random import Random
from typing import Any

from impart_core.tinyzoo.problems.item import Item, Problem
from impart_core.tinyzoo.words import WORDS

_LEADS = ("Reply with the word {w}", "Say the word {w}", "Please write {w}", "Answer with {w}", "Give me {w}")
_CASES = {"upper": ("in capitals", "in upper case"), "title": ("with a capital letter", "capitalised")}
_COUNTS = {2: ("twice", "two times"), 3: ("three times", "thrice")}
_JOINS = {
    ",": ("with commas between", "separated by commas"),
    "-": ("joined by dashes", "with dashes between"),
}
_ENDINGS = {
    "!": ("ending with !", "and shout it with !"),
    "?": ("ending with ?", "as a question with ?"),
    ".": ("ending with .", "and close with ."),
}
_BACKWARDS = ("backwards", "in reverse")
_MAX_ANSWER = 24
_MAX_PROMPT = 100


def draw(rng: Random) -> Item:
    """Draw an instruction of one to four constraints on how to write a word.

    Args:
        rng: source of all choices.

    Returns:
        An item whose spec holds `word`, `case`, `count`, `join`, `ending` and `backwards`.
    """
    while True:
        count = rng.choice((1, 2, 2, 3))
        spec = {
            "word": rng.choice(WORDS),
            "case": rng.choice(("any", "upper", "upper", "title")),
            "count": count,
            "join": rng.choice(("", "", ",", "-")) if count > 1 else "",
            "ending": rng.choice(("", "!", "!", "?", ".")),
            "backwards": rng.random() < 0.15,
        }
        wishes, answer = _wishes(spec, rng), _write(spec)
        prompt = f"{', '.join([rng.choice(_LEADS).format(w=spec['word']), *wishes])}\nReply:"
        if wishes and len(answer) <= _MAX_ANSWER and len(prompt) <= _MAX_PROMPT:
            return Item(prompt=prompt, answer=answer, spec=spec)


def _wishes(spec: Mapping[str, Any], rng: Random) -> list[str]:
    """Word the constraints; the ending comes last, the others in any order."""
    tables = ((_CASES, spec["case"]), (_COUNTS, spec["count"]), (_JOINS, spec["join"]))
    wishes = [rng.choice(table[key]) for table, key in tables if key in table]
    if spec["backwards"]:
        wishes.append(rng.choice(_BACKWARDS))
    rng.shuffle(wishes)
    if spec["ending"]:
        wishes.append(rng.choice(_ENDINGS[spec["ending"]]))
    return wishes


def _write(spec: Mapping[str, Any]) -> str:
    word: str = spec["word"][::-1] if spec["backwards"] else spec["word"]
    word = {"any": word, "upper": word.upper(), "title": word.capitalize()}[spec["case"]]
    between = {"": " ", ",": ", ", "-": "-"}[spec["join"]]
    return between.join([word] * spec["count"]) + str(spec["ending"])


def check(spec: Mapping[str, Any], text: str) -> bool:
    """Test each constraint of an instruction on a reply.

    Args:
        spec: the constraints, as `draw` makes them.
        text: the reply; white space around it is ignored. What the instruction leaves open is free: any case
            where none was asked for, one closing full stop where no ending was asked for.

    Returns:
        True when every constraint holds.
    """
    body = text.strip()
    if spec["ending"]:
        if not body.endswith(spec["ending"]):
            return False
        body = body[:-1].rstrip()
    else:
        body = body.removesuffix(".")
    splitter = {"": r"\s+", ",": r"\s*,\s*", "-": r"\s*-\s*"}[spec["join"]]
    pieces = re.split(splitter, body)
    word = spec["word"][::-1] if spec["backwards"] else spec["word"]
    if len(pieces) != spec["count"] or any(piece.lower() != word for piece in pieces):
        return False
    if spec["case"] == "any":
        return True
    return all(piece == (piece.upper() if spec["case"] == "upper" else piece.capitalize()) for piece in pieces)


CHAT = Problem(name="chat", draw=draw, check=check)
