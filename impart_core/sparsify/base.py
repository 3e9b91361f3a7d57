"""What every sparsifier offers, and what it is given of a projection."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch

from impart_core.codec.parts import Codes, read_part
from impart_core.config import CompressConfig, MethodOptions
from impart_core.delta.factors import Factors
from impart_core.delta.svd import decompose
from impart_core.quantize.curvature import Inputs
from impart_core.registry import Registry

__all__ = ["SPARSIFIERS", "Calibration", "Codes", "Inputs", "Projection", "Sparsifier", "read_part"]

# What a method is told of the model's activations: nothing, the inputs of each matrix, or the scales that make the
# whole model's logits those of the fine-tune.
Calibration = Literal["none", "inputs", "logits"]


@dataclass(frozen=True)
class Projection:
    """One projection to encode: its delta, or the factors of it, worked out when a method asks for them.

    Attributes:
        name: the tensor's full name.
        shape: (m, n).
        delta: gives the delta, float32, (m, n).
        factors: gives the leading singular triplets, as many as `Sparsifier.needed_rank` says or more.
        inputs: what calibration says of its inputs; None where nothing is known of them.
        scales: scales found by distillation; None where there was none.
    """

    name: str
    shape: tuple[int, int]
    delta: Callable[[], torch.Tensor]
    factors: Callable[[], Factors]
    inputs: Inputs | None = None
    scales: torch.Tensor | None = None

    @classmethod
    def of(cls, delta: torch.Tensor, name: str) -> "Projection":
        """Return the projection of a delta at hand, any floating dtype, (m, n); it is decomposed on demand."""
        m, n = delta.shape
        return cls(name, (m, n), delta.float, lambda: decompose(delta, name))


class Sparsifier(Protocol):
    """A method that turns one projection's delta into codes, and back.

    Attributes:
        version: raised whenever the same delta and config give other bytes; part of every block's id.
        options_model: the method's own settings; a field's description and default are what help says of it.
        summary: what the method keeps, in a few words for help.
    """

    version: ClassVar[int]
    options_model: ClassVar[type[MethodOptions]]
    summary: ClassVar[str]

    def check_config(self, config: CompressConfig, largest_rank: int) -> None:
        """Raise ConfigError when settings contradict each other, or ask for more vectors than any matrix has.

        Args:
            config: the settings.
            largest_rank: min(m, n) of the largest matrix.
        """

    def highest_cr(self, m: int, n: int, config: CompressConfig) -> float:
        """Return the highest ratio at which an m×n projection still keeps anything."""

    def expected_bytes(self, m: int, n: int, config: CompressConfig) -> int:
        """Return the bytes that the codes of an m×n projection are expected to take, at most."""

    def needed_rank(self, m: int, n: int, config: CompressConfig) -> int | None:
        """Return the most singular triplets that `encode` uses; None when it works on the delta itself."""

    def calibration(self, config: CompressConfig) -> Calibration:
        """Return what `encode` is to be told of the model's activations."""

    def usual_cr(self, config: CompressConfig) -> float | None:
        """Return a ratio at which ImPart, with β 0.6 and C 1, keeps as many triplets as `encode` uses; None: none."""

    def encode(self, projection: Projection, config: CompressConfig) -> Codes:
        """Return the codes of a projection whose delta is not zero, as CPU tensors by part."""

    def decode(self, codes: Codes, name: str, shape: tuple[int, int], seed: int) -> torch.Tensor:
        """Return the reconstructed delta, float32, (m, n)."""


SPARSIFIERS: Registry[Sparsifier] = Registry("method")
