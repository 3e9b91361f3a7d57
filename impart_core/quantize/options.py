"""Settings that the quantising methods share."""

from pydantic import Field

from impart_core.config import MethodOptions
from impart_core.quantize.ladder import Ladder
from impart_core.quantize.solve import Solver
from impart_core.quantize.streams import LARGEST_GROUP


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


class LadderOptions(QuantizeOptions):
    """The same for singular vectors, whose bits depend on their rank."""

    ladder: Ladder = Field(
        default=Ladder(), description="bits x vectors from the largest singular value down, the last for the rest"
    )

    @property
    def fewest_bits(self) -> int:
        """The fewest bits of any vector."""
        return min(group.bits for group in self.ladder.groups)
