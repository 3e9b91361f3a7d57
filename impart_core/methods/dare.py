"""DARE: every entry of ΔW is kept with one probability, about 1/CR, and what is kept is divided by it.

Drop And REscale, Yu et al. 2024 (arXiv 2311.03099). The mask is regenerated from the seed; only values are stored.
"""

import math
from typing import ClassVar

import numpy as np
import torch

from impart_core.base.errors import CorruptArtifactError
from impart_core.base.settings import MethodOptions
from impart_core.codec.half import EXPONENT_BYTES, decode_half, encode_half, read_exponent, scaled_half
from impart_core.codec.mask import (
    LEVELS,
    UInt16Array,
    count_kept,
    fitting_code,
    keep_codes,
    keep_probability,
    level_chunks,
    mask_from_levels,
    mask_key,
    may_keep,
    most_kept,
)
from impart_core.codec.parts import Codes, read_part, require_proportion
from impart_core.delta.budget import BYTES_PER_VALUE, budget_bytes
from impart_core.methods.base import METHODS, Coding, Method, Projection

_CODE_BYTES = 2 + EXPONENT_BYTES  # the keep-probability code, and the exponent of the values


class Dare(Method):
    """The method.

    Codes of one projection: `keep` uint16 (1,), code c standing for the keep probability q = (c + 1)/65536 of
    every entry; `values` float16, the kept entries row by row, before they are divided by q; `exponent` of these,
    see `codec.half`. The mask has a line of words for each row of the delta. Where nothing fits, both are empty.
    """

    version: ClassVar[int] = 2
    parts: ClassVar[tuple[str, ...]] = ("keep", "values", "exponent")
    options_model: ClassVar[type[MethodOptions]] = MethodOptions
    summary: ClassVar[str] = "entries of the delta at random, rescaled"

    def highest_cr(self, m: int, n: int, coding: Coding) -> float:
        """Return the ratio at which one value fits, but no more than steps of 1/65536 can tell from nothing."""
        if coding.accounting == "bytes":  # at half the steps, the lowest code's mask takes half the budget
            return min(m * n * BYTES_PER_VALUE / (_CODE_BYTES + BYTES_PER_VALUE), LEVELS / 2)
        return float(min(m * n, LEVELS))

    def expected_bytes(self, m: int, n: int, coding: Coding) -> int:
        """Return the budget; under the paper's count, the bytes that not one mask in ten million goes beyond."""
        if coding.accounting == "bytes":
            return budget_bytes(m, n, coding.cr)
        return _CODE_BYTES + BYTES_PER_VALUE * most_kept(m * n, _nearest_code(coding.cr))

    def encode_projection(self, projection: Projection, coding: Coding) -> Codes:
        """Return the codes of a delta; see `Method.encode`."""
        m, n = projection.shape
        key = mask_key(coding.seed, projection.name, "delta")
        if coding.accounting == "bytes":
            keep = fitting_code(key, n, m, (budget_bytes(m, n, coding.cr) - _CODE_BYTES) // BYTES_PER_VALUE)
        else:
            keep = _nearest_code(coding.cr)
        delta, kept = projection.delta().cpu(), []
        for rows, levels in level_chunks(key, n, m) if len(keep) else ():
            kept.append(delta[rows][torch.from_numpy(mask_from_levels(levels, keep))])
        return {
            "keep": torch.from_numpy(keep),
            **encode_half(torch.cat(kept) if kept else torch.empty(0), "values", projection.name),
        }

    def decode_codes(self, codes: Codes, name: str, shape: tuple[int, int], seed: int) -> torch.Tensor:
        """Return the kept entries divided by the keep probability; see `Method.decode`."""
        values, keep = _read(codes, name, shape)
        m, n = shape
        values = decode_half(values, codes, name)
        delta, found = torch.zeros(m, n), 0
        for rows, levels in level_chunks(mask_key(seed, name, "delta"), n, m) if len(keep) else ():
            mask = torch.from_numpy(mask_from_levels(levels, keep))
            part = values[found : found + int(mask.sum())]
            found += int(mask.sum())
            if found <= len(values):
                delta[rows][mask] = part / float(keep_probability(keep)[0])
        if found != len(values):
            raise _other_number(name, len(values), f"{found:,}")
        return delta

    def scaled(self, codes: Codes, name: str, shape: tuple[int, int], gains: torch.Tensor) -> Codes:  # noqa: ARG002
        """Return codes with values times the gain of all; see `Method`."""
        return scaled_half(codes, "values", name, gains)

    def check_codes(self, codes: Codes, name: str, shape: tuple[int, int], seed: int) -> None:
        """Check that there are as many values as the mask keeps, which is not made as a whole; see `Method`."""
        require_proportion(codes, name, math.prod(shape))
        values, keep = _read(codes, name, shape)
        read_exponent(codes, name)
        kept = count_kept(mask_key(seed, name, "delta"), shape[1], shape[0], keep) if len(keep) else 0
        if kept != len(values):
            raise _other_number(name, len(values), f"{kept:,}")


def _read(codes: Codes, name: str, shape: tuple[int, int]) -> tuple[torch.Tensor, UInt16Array]:
    """Return the values, float16, and the keep code, (1,), or (0,) where nothing is kept."""
    values = read_part(codes, name, "values", torch.float16, None)
    keep = read_part(codes, name, "keep", torch.uint16, None).numpy()
    if len(keep) > 1:
        raise CorruptArtifactError(f"The codes of {name!r} have {len(keep)} keep probabilities instead of one.")
    if len(keep) and not may_keep(len(values), math.prod(shape), keep):
        raise _other_number(name, len(values), "far more or fewer")
    return values, keep


def _nearest_code(cr: float) -> UInt16Array:
    return keep_codes(np.array([1.0 / cr]))


def _other_number(name: str, found: int, kept: str) -> CorruptArtifactError:
    return CorruptArtifactError(
        f"The codes of {name!r} hold {found:,} values, but its mask keeps {kept}. "
        "The artifact is damaged or was made by another version: compress it again."
    )


METHODS.register("dare", Dare())
