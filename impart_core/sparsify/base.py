"""What every sparsifier offers, and what it is given of a projection."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch

from impart_core.config import CompressConfig, MethodOptions
from impart_core.delta.factors import Factors
from impart_core.delta.svd import decompose
from impart_core.errors import CorruptArtifactError
from impart_core.registry import Registry

Codes = dict[str, torch.Tensor]
# What a method is told of the model's activations: nothing, the inputs of each matrix, or the scales that make the
# whole model's logits those of the fine-tune.
Calibration = Literal["none", "inputs", "logits"]


@dataclass(frozen=True)
class Inputs:
    """What calibration says of the inputs of one matrix.

    Attributes:
        hessian: 2·X·Xᵀ averaged over tokens, undamped, float32, (side, side).
        of_rows: whether inputs meet the matrix's rows, as where a layer stores its weight as (in, out); else its
            columns.
    """

    hessian: torch.Tensor
    of_rows: bool = False


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

    def check_config(self, config: CompressConfig) -> None:
        """Raise ConfigError when settings contradict each other, whatever the shape."""

    def highest_cr(self, m: int, n: int, config: CompressConfig) -> float:
        """Return the highest ratio at which an m×n projection still keeps anything."""

    def expected_bytes(self, m: int, n: int, config: CompressConfig) -> int:
        """Return the bytes that the codes of an m×n projection are expected to take, at most."""

    def needed_rank(self, m: int, n: int, config: CompressConfig) -> int | None:
        """Return the most singular triplets that `encode` uses; None when it works on the delta itself."""

    def calibration(self, config: CompressConfig) -> Calibration:
        """Return what `encode` is to be told of the model's activations."""

    def is_usual(self, config: CompressConfig) -> bool:
        """Return whether `encode` uses no more triplets than ImPart keeps at this ratio with β 0.6 and C 1."""

    def encode(self, projection: Projection, config: CompressConfig) -> Codes:
        """Return the codes of a projection whose delta is not zero, as CPU tensors by part."""

    def decode(self, codes: Codes, name: str, shape: tuple[int, int], seed: int) -> torch.Tensor:
        """Return the reconstructed delta, float32, (m, n)."""


def read_part(codes: Codes, name: str, part: str, dtype: torch.dtype, *shape: int | None) -> torch.Tensor:
    """Return one part of a tensor's codes, having checked what a damaged file may get wrong.

    Args:
        codes: the codes by part.
        name: the tensor, for the error.
        part: which of them.
        dtype: its dtype.
        shape: its shape; None for a side of any length.

    Raises:
        CorruptArtifactError: the part is missing, or is another tensor than it should be.
    """
    if part not in codes:
        raise CorruptArtifactError(f"The codes of {name!r} have no part {part!r}.")
    found = codes[part]
    sides = zip(found.shape, shape, strict=False)
    if found.dtype != dtype or found.dim() != len(shape) or any(want not in (None, side) for side, want in sides):
        raise CorruptArtifactError(
            f"Part {part!r} of the codes of {name!r} is {found.dtype} of shape {list(found.shape)}; expected "
            f"{dtype} of shape {['any' if side is None else side for side in shape]}."
        )
    return found


SPARSIFIERS: Registry[Sparsifier] = Registry("method")
