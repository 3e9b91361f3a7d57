"""Settings that the quantising methods share."""

import math
from collections.abc import Callable

from pydantic import Field

from impart_core.codec.parts import Codes, nbytes
from impart_core.config import MethodOptions
from impart_core.quantize.ladder import Ladder
from impart_core.quantize.solve import Solver
from impart_core.quantize.streams import LARGEST_GROUP

_STORED = 0.7  # of codes of 2 bits
_TRIES = 4
_ENOUGH = 1.005  # more room than this is worth another encoding


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

    def within(self, budget: int, encode: Callable[[int], Codes], most: float = math.inf) -> Codes:
        """Return the codes that use a budget up, of those that an encoder makes for the same or a greater packed size.

        Args:
            budget: bytes that are not to be exceeded.
            encode: returns codes whose size before the entropy coder is within what it is given.
            most: the greatest packed size, where no more vectors are at hand than `entries_share` says.
        """
        best, packed = encode(budget), budget
        if not (self.lossless and self.fill):
            return best
        size, low, high = nbytes(best), budget, math.inf  # packed sizes that fit, and that do not
        for _ in range(_TRIES):
            packed = int(min(low * budget / size, (low + high) / 2, most))
            if packed <= low * _ENOUGH:
                break
            found = encode(packed)
            if nbytes(found) > budget:
                high = packed
            else:
                best, size, low = found, nbytes(found), packed
        return best


class LadderOptions(QuantizeOptions):
    """The same for singular vectors, whose bits depend on their rank."""

    ladder: Ladder = Field(
        default=Ladder(), description="bits x vectors from the largest singular value down, the last for the rest"
    )

    @property
    def fewest_bits(self) -> int:
        """The fewest bits of any vector."""
        return min(group.bits for group in self.ladder.groups)
