"""Holes of a template: where a search may put one of several values, or any of a range."""

import math
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from impart_core.base.errors import ConfigError
from impart_core.base.settings import Frozen

SIGNIFICANT = 6  # digits of a suggested number: what is tried can be read, and written down again exactly
_LARGEST, _MOST_STEPS = 1e15, 1_000_000  # of a range
_FIT = 1e-9  # how far a step may miss the end of its range, as a share of a step


class Hole(Frozen):
    """A place in a template for a value.

    Attributes:
        name: what the parameter is called; None: by its place. Holes of one name get the same value.
        default: its value in the default candidate, which all others are held against; None: see `middle`.
    """

    name: str | None = Field(default=None, min_length=1)
    default: Any = None

    @property
    def start(self) -> Any:
        """Its value in the default candidate."""
        return self.middle if self.default is None else self.default

    @property
    def middle(self) -> Any:
        """A value that stands for all."""
        raise NotImplementedError

    @property
    def values(self) -> tuple[Any, ...] | None:
        """All values in order; None where there is no end of them."""
        raise NotImplementedError

    def holds(self, value: Any) -> bool:
        """Return whether a value may fill it."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _default_fits(self) -> "Hole":
        if self.default is not None and not self.holds(self.default):
            raise ConfigError(f"The default {self.default!r} is none of the values that it may have.")
        return self


class Choose(Hole):
    """One of some values, in no order.

    Attributes:
        choose: the values: anything that YAML can say.
    """

    choose: tuple[Any, ...]

    @field_validator("choose")
    @classmethod
    def _all_differ(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if not values:
            raise ConfigError("There is nothing to choose from. List at least one value.")
        if twice := [value for number, value in enumerate(values) if value in values[:number]]:
            raise ConfigError(f"{twice[0]!r} stands there twice.")
        return values

    @property
    def middle(self) -> Any:
        """The first."""
        return self.choose[0]

    @property
    def values(self) -> tuple[Any, ...]:
        """The values as they are written."""
        return self.choose

    def holds(self, value: Any) -> bool:
        """Return whether it is one of them."""
        return value in self.choose


class Range(Hole):
    """A number between two others, both included.

    Attributes:
        range: the lowest and the highest value.
        log: whether its logarithm is what is spread evenly.
        step: the distance between values; None: any number in the range. Whole numbers stay whole.
    """

    range: tuple[int | float, int | float]
    log: bool = False
    step: int | float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _is_no_nonsense(self) -> "Range":
        low, high = self.range
        if max(abs(low), abs(high)) > _LARGEST:
            raise ConfigError(f"The range reaches further than {_LARGEST:g}. Give a nearer end.")
        if low > high:
            raise ConfigError(f"The lowest value, {low}, is above the highest, {high}.")
        if self.log and low <= 0:
            raise ConfigError(f"A logarithm needs values above 0, and the lowest is {low}.")
        if self.log and self.step is not None:
            raise ConfigError("log and step do not go together. Leave one out, or list the values: {choose: […]}.")
        if self.step is not None:
            steps = (high - low) / self.step
            if steps > _MOST_STEPS:
                raise ConfigError(f"A step of {self.step} makes {steps:g} values of the range. Take a larger one.")
            if abs(steps - round(steps)) > _FIT * max(1.0, steps):
                fitting = low + math.floor(steps + _FIT) * self.step
                raise ConfigError(f"Steps of {self.step} from {low} do not end at {high}; they end at {fitting:g}.")
        return self

    @property
    def whole(self) -> bool:
        """Whether its values are whole numbers."""
        return self.step is not None and all(isinstance(number, int) for number in (*self.range, self.step))

    @property
    def middle(self) -> int | float:
        """The value half-way: the lower one of two."""
        low, high = self.range
        if self.step is not None:
            return self.nth(round((high - low) / self.step) // 2)
        return rounded(math.sqrt(low * high) if self.log else (low + high) / 2)

    @property
    def values(self) -> tuple[int | float, ...] | None:
        """The values from the lowest to the highest; None without a step."""
        if self.step is None:
            return None
        return tuple(self.nth(number) for number in range(round((self.range[1] - self.range[0]) / self.step) + 1))

    def nth(self, number: int) -> int | float:
        """Return the value so many steps above the lowest."""
        assert self.step is not None
        value = self.range[0] + number * self.step
        return int(value) if self.whole else rounded(value)

    def nearest(self, value: float) -> int | float:
        """Return the value of the range that is nearest to a number."""
        low, high = self.range
        inside = min(max(value, low), high)
        if self.step is not None:
            return self.nth(round((inside - low) / self.step))
        return min(max(rounded(inside), low), high)

    def holds(self, value: Any) -> bool:
        """Return whether a number is in the range, and on a step."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
            return False
        return math.isclose(self.nearest(value), value, rel_tol=10.0**-SIGNIFICANT, abs_tol=1e-12)


AnyHole = Choose | Range
Kind = Literal["choose", "range"]
KINDS: dict[str, type[AnyHole]] = {"choose": Choose, "range": Range}


def rounded(value: float) -> float:
    """Return a number to so many significant digits."""
    return float(f"{value:.{SIGNIFICANT}g}")
