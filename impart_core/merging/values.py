"""Values of a merge file that may differ from tensor to tensor: one number, a gradient over layers, or by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from impart_core.base.errors import ConfigError

Scalar = bool | int | float | str
_EVERY = "*"


@dataclass(frozen=True)
class Gradient:
    """Values spread evenly over the layers: numbers are interpolated linearly, others hold for their share."""

    values: tuple[Scalar, ...]

    def at(self, depth: float) -> Scalar:
        """Return the value at a depth, 0 for the first layer and 1 for the last."""
        last = len(self.values) - 1
        if not all(_is_number(value) for value in self.values):
            return self.values[int(depth * last)]
        numbers = [float(value) for value in self.values]
        before = int(depth * last)
        after, share = min(last, before + 1), depth * last - before
        return (1 - share) * numbers[before] + share * numbers[after]


@dataclass(frozen=True)
class Setting:
    """A value as a file states it.

    Attributes:
        cases: what a tensor's name must contain for each value to hold, None for any name; the first that fits counts.
    """

    cases: tuple[tuple[str | None, Scalar | Gradient], ...]

    def at(self, tensor: str, depth: float) -> Scalar | None:
        """Return the value for a tensor at a depth; None where no case fits."""
        for part, value in self.cases:
            if part is None or part in tensor:
                return value.at(depth) if isinstance(value, Gradient) else value
        return None

    def plain(self) -> Any:
        """Return it as JSON, the same for files that mean the same."""
        plain = [[part, list(value.values) if isinstance(value, Gradient) else value] for part, value in self.cases]
        return plain[0][1] if plain[0][0] is None else plain


def parse_setting(name: str, raw: Any) -> Setting:
    """Return a value of a file: a scalar, a list of scalars, `{filter, value}`, or a list of these.

    Raises:
        ConfigError: it is something else; the message says where it stands.
    """
    if isinstance(raw, Mapping):
        raw = [raw]
    if isinstance(raw, Sequence) and not isinstance(raw, str) and any(isinstance(one, Mapping) for one in raw):
        return Setting(tuple(_case(name, one) for one in raw))
    return Setting(((None, _value(name, raw)),))


def _case(name: str, raw: Any) -> tuple[str | None, Scalar | Gradient]:
    named = isinstance(raw, Mapping) and isinstance(raw.get("filter", ""), str | None)
    if not isinstance(raw, Mapping) or not named or "value" not in raw or not set(raw) <= {"filter", "value"}:
        raise ConfigError(
            f"{name} holds {raw!r:.80}. Values by the names of tensors are written {{filter: part of a name, value: "
            "number}; without a filter one holds for all that are left."
        )
    wanted = raw.get("filter")
    return (None if wanted in (None, _EVERY) else str(wanted)), _value(name, raw["value"])


def _value(name: str, raw: Any) -> Scalar | Gradient:
    if isinstance(raw, list | tuple):
        if not raw or not all(isinstance(one, Scalar) for one in raw):
            raise ConfigError(f"{name} is {raw!r:.80}. A gradient over layers is a list of one or more numbers.")
        return Gradient(tuple(_number(name, one) for one in raw))
    if not isinstance(raw, Scalar):
        raise ConfigError(
            f"{name} is {raw!r:.80}. It must be a number, a list of numbers (a gradient over layers), or a list of "
            "{filter, value}."
        )
    return _number(name, raw)


def _number(name: str, value: Scalar) -> Scalar:
    """Return a number that YAML reads as text, as it does `1e-5`, as a number."""
    if isinstance(value, bool):
        return value
    try:
        return float(value) if isinstance(value, str) or abs(value) > 2**53 else value
    except ValueError:
        return value
    except OverflowError:
        raise ConfigError(
            f"{name} is {str(value)[:20]}…, which is larger than any number that is computed with."
        ) from None


def _is_number(value: Scalar) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
