"""Rank groups: how many bits each singular vector gets, more for the important ones (paper §3.3, Delta-CoMe)."""

import re
from typing import Any, get_args

from pydantic import Field, model_serializer, model_validator

from impart_core.base.errors import ConfigError
from impart_core.base.settings import Frozen
from impart_core.quantization.grid import Bits, RowRange

WIDTHS: tuple[Bits, ...] = get_args(Bits)
_EXAMPLE = "Write bits x vectors, the last without a count for the rest, like 8x2,3x32,2."


class RankGroup(Frozen):
    """Vectors of the same bits; `vectors` is None for the rest."""

    bits: Bits
    vectors: int | None = Field(default=None, ge=1)


class Ladder(Frozen):
    """Rank groups from the largest singular value down; the last takes the rest.

    A text such as `8x2,3x32,2` is read wherever a ladder is expected, and written.
    """

    groups: tuple[RankGroup, ...] = (
        RankGroup(bits=8, vectors=2),
        RankGroup(bits=3, vectors=32),
        RankGroup(bits=2),
    )

    @classmethod
    def parse(cls, text: str) -> "Ladder":
        """Return the ladder that a text such as `8x2,3x32,2` describes.

        Raises:
            ConfigError: it describes none.
        """
        groups = tuple(_group(part, text) for part in text.replace(" ", "").split(","))
        _require_one_rest(groups, text)
        return cls(groups=groups)

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, value: Any) -> Any:
        return {"groups": cls.parse(str(value)).groups} if isinstance(value, str | int) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> dict[str, Any]:
        """Describe it as the text that is read and written."""
        return {"title": "Ladder", "type": ["string", "integer"], "description": _EXAMPLE}

    @model_serializer
    def _as_text(self) -> str:
        return str(self)

    @model_validator(mode="after")
    def _ends_with_the_rest(self) -> "Ladder":
        _require_one_rest(self.groups, str(self))
        return self

    def __str__(self) -> str:
        """Return the text that describes it."""
        return ",".join(f"{g.bits}" if g.vectors is None else f"{g.bits}x{g.vectors}" for g in self.groups)

    @property
    def counted(self) -> int:
        """How many vectors come before the rest."""
        return sum(group.vectors or 0 for group in self.groups)

    def check_rank(self, rank: int, what: str) -> None:
        """Refuse a ladder whose counts ask for more vectors than there can be.

        Of a delta, its largest matrix is what to check: smaller ones, and those of which fewer vectors are kept,
        just end earlier.

        Args:
            rank: min(m, n).
            what: whose rank it is ("the largest matrix").

        Raises:
            ConfigError: naming the rank and a ladder that would do.
        """
        if self.counted > rank:
            raise ConfigError(
                f"Ladder {self} asks for {self.counted} vectors before the rest, but {what} has rank {rank}. "
                f"Lower the counts to {rank} in all, as in {self._within(rank)}."
            )

    def spans(self, count: int) -> tuple[RowRange, ...]:
        """Return which of so many vectors fall in which group; groups that none is left for are not among them.

        Args:
            count: vectors that are kept, K, from the largest singular value down.
        """
        spans, start = [], 0
        for group in self.groups:
            stop = count if group.vectors is None else min(count, start + group.vectors)
            if stop > start:
                spans.append(RowRange(start, stop, group.bits))
            start = stop
        return tuple(spans)

    def _within(self, rank: int) -> "Ladder":
        kept, left = [], rank
        for group in self.groups[:-1]:
            if left:
                kept.append(RankGroup(bits=group.bits, vectors=min(group.vectors or left, left)))
                left -= kept[-1].vectors or 0
        return Ladder(groups=(*kept, self.groups[-1]))


def _group(part: str, text: str) -> RankGroup:
    match = re.fullmatch(r"([0-9]{1,9})(?:x([0-9]{1,9}))?", part)
    if not match:
        raise ConfigError(f"Ladder {text!r} has the group {part!r}, which is not bits x vectors. {_EXAMPLE}")
    bits = next((width for width in WIDTHS if width == int(match[1])), None)
    if bits is None:
        known = ", ".join(str(width) for width in WIDTHS)
        raise ConfigError(f"Ladder {text!r} has a group of {match[1]} bits; they can be {known}.")
    if match[2] is not None and int(match[2]) == 0:
        raise ConfigError(f"Ladder {text!r} has a group of no vectors, {part!r}. Leave it out.")
    return RankGroup(bits=bits, vectors=None if match[2] is None else int(match[2]))


def _require_one_rest(groups: tuple[RankGroup, ...], text: str) -> None:
    if not groups or groups[-1].vectors is not None:
        raise ConfigError(f"Ladder {text!r} has no group for the rest of the vectors. {_EXAMPLE}")
    if any(group.vectors is None for group in groups[:-1]):
        raise ConfigError(f"Ladder {text!r} has a group without a count before its last. {_EXAMPLE}")
