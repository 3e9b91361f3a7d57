"""The space of a search: the holes of its template by name, and the template with values filled in."""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from pydantic import ValidationError

from impart_core.base.canonical import digest_of
from impart_core.base.errors import ConfigError
from impart_core.base.settings import nearest, sentences
from impart_core.searching.hole import KINDS, AnyHole, Range

LARGEST_GRID = 100_000


@dataclass(frozen=True)
class Candidate:
    """A template with every hole filled.

    Attributes:
        values: value of each parameter by name.
        filled: the template with the values in it: JSON values.
    """

    values: Mapping[str, Any]
    filled: Mapping[str, Any]

    @cached_property
    def digest(self) -> str:
        """What it is known by: the SHA-256 of the filled template, whatever search it comes from."""
        return digest_of(self.filled)


@dataclass(frozen=True)
class Space:
    """What may be searched.

    Attributes:
        template: the template, its holes among its values.
        holes: hole of each parameter by name, in the order of the template.
        places: where each parameter stands in the template: its name by path.
    """

    template: Mapping[str, Any]
    holes: Mapping[str, AnyHole]
    places: Mapping[tuple[str | int, ...], str]

    @classmethod
    def of(cls, template: Mapping[str, Any]) -> Self:
        """Find the holes of a template.

        Args:
            template: what it is a template of, and the template.

        Raises:
            ConfigError: there is none, one is no hole that can be filled, or two of one name differ.
        """
        holes: dict[str, AnyHole] = {}
        places: dict[tuple[str | int, ...], str] = {}
        for path, raw in _holes(template, ()):
            place = _told(path)
            if inner := next(_holes([value for key, value in raw.items() if key != "name"], ()), None):
                raise ConfigError(f"The hole at {place} holds another, {inner[1]!r:.60}. List its values in one.")
            hole = _hole(place, raw)
            name = hole.name or place
            if holes.setdefault(name, hole) != hole:
                raise ConfigError(f"Two holes are called {name!r} and differ. Write both alike, or name one otherwise.")
            places[path] = name
        for path, value in _leaves(template, ()):
            if not (value is None or (isinstance(value, str | bool | int | float) and _is_finite(value))):
                raise ConfigError(
                    f"{_told(path)} is {value!r:.60}, which a candidate cannot be written down with. Give text, a "
                    "finite number, true, false or null, or put it in quotes."
                )
        if not holes:
            raise ConfigError(
                "The template has no hole, so that there is nothing to search. Write {choose: [a, b]} or "
                "{range: [low, high]} in place of a value."
            )
        return cls(template, holes, places)

    def fill(self, values: Mapping[str, Any]) -> Candidate:
        """Return the candidate of these values, one for each parameter.

        Raises:
            ConfigError: a parameter is not there, has no value, or one that its hole does not hold.
        """
        for name in values:
            if name not in self.holes:
                raise ConfigError(f"The template has no parameter {name!r}.{nearest(name, self.holes)}")
        for name, hole in self.holes.items():
            if name not in values:
                raise ConfigError(f"The parameter {name} has no value.")
            if not hole.holds(values[name]):
                raise ConfigError(f"The parameter {name} cannot be {values[name]!r}.")
        ordered = {name: values[name] for name in self.holes}
        return Candidate(ordered, _filled(self.template, (), self.places, ordered))

    @property
    def defaults(self) -> dict[str, Any]:
        """Value of each parameter in the default candidate."""
        return {name: hole.start for name, hole in self.holes.items()}

    @property
    def size(self) -> int | None:
        """How many candidates there are; None: no end of them."""
        size = 1
        for hole in self.holes.values():
            if hole.values is None:
                return None
            size *= len(hole.values)
        return size

    def grid(self) -> Iterator[dict[str, Any]]:
        """Give the values of all candidates, the last parameter's changing fastest.

        Raises:
            ConfigError: a range has no step, or there are too many.
        """
        for name, hole in self.holes.items():
            if hole.values is None:
                raise ConfigError(f"A grid needs a step for the range of {name}, or a list: {{choose: […]}}.")
        if (self.size or 0) > LARGEST_GRID:
            raise ConfigError(
                f"The grid has {self.size:,} candidates; at most {LARGEST_GRID:,} are searched one by one."
            )
        for values in itertools.product(*(hole.values or () for hole in self.holes.values())):
            yield dict(zip(self.holes, values, strict=True))

    def random(self, rng: np.random.Generator) -> dict[str, Any]:
        """Return values drawn at random, each parameter's on its own."""
        return {name: _drawn(hole, rng) for name, hole in self.holes.items()}


def _holes(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], dict[str, Any]]]:
    if isinstance(value, dict):
        if any(kind in value for kind in KINDS):
            yield path, value
            return
        for key, inner in value.items():
            yield from _holes(inner, (*path, key))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _holes(inner, (*path, number))


def _leaves(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Give all that is neither a list nor a mapping, and keys that are no text, each with its place."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(key, str):
                yield from _leaves(inner, (*path, key))
            else:
                yield path, {key: inner}
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _leaves(inner, (*path, number))
    else:
        yield path, value


def _is_finite(value: str | float) -> bool:
    return isinstance(value, str | int) or math.isfinite(value)


def _told(path: tuple[str | int, ...]) -> str:
    """Return the place of a value as people write it."""
    return ".".join(map(str, path[1:] or path))


def _hole(place: str, raw: dict[str, Any]) -> AnyHole:
    kind = KINDS["choose" if "choose" in raw else "range"]
    try:
        return kind.model_validate(raw)
    except ConfigError as error:
        raise ConfigError(f"The hole at {place}: {error}") from None
    except ValidationError as error:
        raise ConfigError(f"The hole at {place}: {' '.join(sentences(error, kind, raw))}") from None


def _filled(value: Any, path: tuple[str | int, ...], places: Mapping[Any, str], values: Mapping[str, Any]) -> Any:
    if path in places:
        return values[places[path]]
    if isinstance(value, dict):
        return {key: _filled(inner, (*path, key), places, values) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(inner, (*path, number), places, values) for number, inner in enumerate(value)]
    return value


def _drawn(hole: AnyHole, rng: np.random.Generator) -> Any:
    if hole.values is not None:
        return hole.values[int(rng.integers(len(hole.values)))]
    assert isinstance(hole, Range)
    low, high = map(float, hole.range)
    return hole.nearest(float(np.exp(rng.uniform(np.log(low), np.log(high))) if hole.log else rng.uniform(low, high)))
