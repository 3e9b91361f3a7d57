"""Settings that the quantising methods share."""

import math
from collections.abc import Callable
from typing import Literal, Self

from pydantic import Field

from impart_core.base.settings import MethodOptions
from impart_core.codec.parts import Codes, nbytes
from impart_core.quantization.ladder import Ladder
from impart_core.quantization.solve import Solver
from impart_core.quantization.streams import LARGEST_GROUP

_STORED = 0.7  # of codes of 2 bits
_TRIES = 4
_AIM, _ENOUGH = 0.993, 0.985  # shares of the budget: what is aimed at, and from where on it counts as filled
_SPREAD = 0.97  # of the entries that fill a budget rounded to nearest: GPTQ's codes spread a little wider


class QuantizeOptions(MethodOptions):
    """How kept entries become codes."""

    group_size: int = Field(
        default=128, ge=1, le=LARGEST_GROUP, description="kept entries that share a 16-bit scale and a zero point"
    )
    solver: Solver = Field(
        default="support",
        description="support: GPTQ of each row on its kept entries; masked: the paper's Algorithm 2; nearest: none",
    )
    lossless: bool = Field(default=True, description="whether codes are made smaller by an entropy coder at the end")
    fill: bool = Field(
        default=True, description="whether the bytes that the entropy coder saves are spent on more entries"
    )

    @property
    def entries_share(self) -> float:
        """About how much of the packed size is stored at the fewest bits, where what is saved is spent; else 1."""
        return _STORED if self.lossless and self.fill else 1.0

    @property
    def calibration(self) -> Literal["none", "inputs"]:
        """What is to be known of the model's activations: the inputs, but for rounding to nearest."""
        return "none" if self.solver == "nearest" else "inputs"

    def within(self, budget: int, encode: Callable[[int, Self], Codes], most: float = math.inf) -> Codes:
        """Return codes that use a budget up: an encoder is asked for greater and greater packed sizes.

        About which fits is found by rounding to nearest, which costs next to nothing.

        Args:
            budget: bytes that are not to be exceeded.
            encode: returns codes whose size before the entropy coder is within what it is given, by given settings.
            most: the greatest packed size, where no more vectors are at hand than `entries_share` says.
        """
        if not (self.lossless and self.fill):
            return encode(budget, self)
        packed = budget
        if self.solver != "nearest":
            nearest = self.model_copy(update={"solver": "nearest"})
            guess, _ = _filled(budget, budget, lambda size: encode(size, nearest), most)
            packed = max(budget, int(_SPREAD * guess))
        return _filled(budget, packed, lambda size: encode(size, self), most)[1]


class LadderOptions(QuantizeOptions):
    """The same for singular vectors, whose bits depend on their rank."""

    ladder: Ladder = Field(
        default=Ladder(), description="bits x vectors from the largest singular value down, the last for the rest"
    )

    @property
    def fewest_bits(self) -> int:
        """The fewest bits of any vector."""
        return min(group.bits for group in self.ladder.groups)


def _filled(budget: int, packed: int, encode: Callable[[int], Codes], most: float) -> tuple[int, Codes]:
    """Return the packed size that about fills a budget, and its codes.

    Args:
        budget: the bytes to fill.
        packed: a first guess; the budget itself always fits.
        encode: returns codes of at most a packed size.
        most: the greatest packed size.
    """
    best, low, high = None, budget, math.inf  # packed sizes that fit, and that do not
    for left in reversed(range(_TRIES)):
        found = encode(packed)
        size = nbytes(found)
        if size <= budget:
            best, low = found, packed
            if size >= _ENOUGH * budget:
                break
        elif packed == budget:  # such a request is refused beforehand
            return budget, found
        else:
            high = packed
        aimed = min(packed * _AIM * budget / size, most)  # stored bytes grow about as packed ones do
        packed = int(aimed if aimed < high else (low + high) / 2)
        if best is None and left == 1:
            packed = budget
        if packed <= low:
            if best is not None:
                break
            packed = budget
    assert best is not None
    return low, best
