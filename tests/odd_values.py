"""Values that stand where they should not: whatever is written in a file gives a sentence, never a traceback."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

from impart_core.base.errors import ImpartError

ODD: tuple[Any, ...] = (
    None,
    0,
    -1,
    1.5,
    True,
    "",
    "x",
    "a\0b",
    [],
    [[]],
    [["a"]],
    [{}],
    {},
    {"a": ["b"]},
    {1: 2},
    {(1, 2): 3},
    [None],
    float("nan"),
    float("inf"),
    10**400,
    {"of": [1]},
    {"choose": {}},
    {"choose": [1], "name": [2]},
    {"choose": [{"choose": [1]}]},
    {"choose": [[{"model": "a"}], [{"model": "b"}]]},
    {"range": "x"},
    {"range": [0, float("nan")]},
    {"range": [0, 1], "default": [1]},
    {"range": [0, 1], "choose": [1]},
)


def variations(document: Any) -> Iterator[tuple[tuple[Any, ...], Any, Any]]:
    """Give a document with an odd value in the place of each of its values in turn: the place, the value, the whole."""
    for place in _places(document, ()):
        for value in ODD:
            yield place, value, _with(document, place, value)


def tracebacks(document: Any, read: Callable[[Any], object]) -> list[str]:
    """Return which variations of a document end in another error than one of ours."""
    found = []
    for place, value, whole in variations(document):
        try:
            read(whole)
        except ImpartError:
            pass
        except Exception as error:
            found.append(f"{place} = {value!r:.60}: {type(error).__name__}: {error!s:.80}")
    return found


def _places(value: Any, place: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    yield place
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _places(inner, (*place, key))


def _with(document: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    changed = inner = copy.deepcopy(document)
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return changed
