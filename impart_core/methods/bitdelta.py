"""BitDelta: ΔW ≈ s·sign(ΔW), one bit an entry (Liu et al. 2024, arXiv 2402.10193).

Beyond 16×, where not every entry can have a bit, it is combined with DARE as in the paper: entries are kept with
probability q, and the scale of those is divided by q, so that the expectation over seeds is what all of them give.
"""

import math
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field

from impart_core.base.errors import CorruptArtifactError
from impart_core.base.settings import DISTIL, Accounting, MethodOptions
from impart_core.codec.bitpack import UInt8Array, packed_bytes
from impart_core.codec.mask import (
    LEVELS,
    UInt16Array,
    count_kept,
    fitting_code,
    keep_codes,
    keep_probability,
    mask_key,
    may_keep,
    most_kept,
    whole_mask,
)
from impart_core.codec.parts import Codes, read_part, require_proportion
from impart_core.delta.budget import budget_bytes
from impart_core.methods.base import METHODS, Coding, Method, Projection
from impart_core.methods.terms import Terms
from impart_core.quantization.bitdelta import SCALE_BYTES, SignCodes, decode_signs, encode_signs, sign_bytes

_CODE_BYTES = 2  # the keep-probability code
_ALL = np.empty(0, dtype=np.uint16)  # no keep code: no mask
_CR_OF_ALL = 16  # one bit an entry, against 16


class BitDeltaOptions(MethodOptions):
    """BitDelta's settings."""

    per_row: bool = Field(default=False, description="whether each row of a matrix has a scale of its own")
    distil: bool = DISTIL  # in recipes also where it is false, as ever

    def more_room(self, accounting: Accounting) -> str | None:
        """Scales of rows take the room of signs, where they count; see `MethodOptions.more_room`."""
        return "set per_row to false" if self.per_row and accounting == "bytes" else None


class BitDelta(Method):
    """The method.

    Codes of one projection: `scales` float32, (1,) or with `per_row` (m,), the magnitude that kept entries are
    decoded to, the division by q included; `signs` uint8, a bit for each kept entry row by row, set where it is
    positive, of a zero by a coin, least significant bit first; `keep` uint16, (0,) where all entries are kept, else
    (1,), code c standing for the keep probability q = (c + 1)/65536 of every entry. The mask is DARE's. Where nothing
    fits, all are empty.
    """

    version: ClassVar[int] = 2
    parts: ClassVar[tuple[str, ...]] = ("scales", "signs", "keep")
    options_model: ClassVar[type[MethodOptions]] = BitDeltaOptions
    summary: ClassVar[str] = "signs of the delta's entries, one bit each, and their mean magnitude"

    def highest_cr(self, m: int, n: int, coding: Coding) -> float:
        """Return the ratio at which a byte of signs fits, or all that the lowest keep code has to keep.

        Not one mask in a hundred thousand keeps more with that code than is reckoned with here.
        """
        if coding.accounting == "paper":
            return float(_CR_OF_ALL * min(m * n, LEVELS))
        mean = m * n / LEVELS
        masked = _CODE_BYTES + packed_bytes(math.ceil(mean + 6 * math.sqrt(mean)), 1)
        return 2 * m * n / (SCALE_BYTES * _scales(m, coding) + min(masked, packed_bytes(m * n, 1)))

    def expected_bytes(self, m: int, n: int, coding: Coding) -> int:
        """Return the budget; under the paper's count, the bytes that not one mask in ten million goes beyond."""
        scales = _scales(m, coding)
        everything = sign_bytes(m * n, scales)
        if coding.accounting == "bytes":
            return min(everything, budget_bytes(m, n, coding.cr))
        if coding.cr <= _CR_OF_ALL:
            return everything
        return _CODE_BYTES + sign_bytes(most_kept(m * n, _nearest_code(coding.cr)), scales)

    def encode_projection(self, projection: Projection, coding: Coding) -> Codes:
        """Return the codes of a delta; see `Method.encode`.

        Raises:
            TensorValueError: the delta holds NaN or infinity.
        """
        m, n = projection.shape
        key = mask_key(coding.seed, projection.name, "delta")
        keep = _keep_code(key, m, n, coding)
        if keep is None:
            return _codes(torch.empty(0), np.empty(0, dtype=np.uint8), _ALL)
        coin = mask_key(coding.seed, projection.name, "sign")
        mask = _mask(key, (m, n), keep)
        found = encode_signs(projection.delta(), projection.name, _options(coding).per_row, mask, coin)
        scales = found.scales / float(keep_probability(keep).prod())  # of no code: 1
        return _codes(scales, found.signs, keep)

    def decode_codes(self, codes: Codes, name: str, shape: tuple[int, int], seed: int) -> torch.Tensor:
        """Return the sign of every kept entry times its scale, and zero elsewhere; see `Method.decode`."""
        stored, keep = _read(codes, name, shape)
        if not len(stored.scales):
            return torch.zeros(shape)
        mask = _mask(mask_key(seed, name, "delta"), shape, keep)
        _require_number(stored, name, math.prod(shape) if mask is None else int(mask.count_nonzero()))
        return decode_signs(stored, shape, mask)

    def terms(self, codes: Codes, name: str, shape: tuple[int, int], seed: int) -> Terms:
        """Return the decoded delta with a gain for each scale; see `Method`."""
        return Terms(self.decode(codes, name, shape, seed), per_row=len(codes["scales"]) > 1)

    def scaled(self, codes: Codes, name: str, shape: tuple[int, int], gains: torch.Tensor) -> Codes:  # noqa: ARG002
        """Return codes with scales times gains; see `Method`."""
        return {**codes, "scales": codes["scales"] * gains}

    def check_codes(self, codes: Codes, name: str, shape: tuple[int, int], seed: int) -> None:
        """Check that there are as many signs as the mask keeps, which is not made as a whole; see `Method`."""
        require_proportion(codes, name, math.prod(shape))
        stored, keep = _read(codes, name, shape)
        m, n = shape
        if len(stored.scales):
            kept = count_kept(mask_key(seed, name, "delta"), n, m, keep) if len(keep) else m * n
            _require_number(stored, name, kept)


def _read(codes: Codes, name: str, shape: tuple[int, int]) -> tuple[SignCodes, UInt16Array]:
    """Return scales and signs, and the keep code, (1,), or (0,) where all entries are kept."""
    scales = read_part(codes, name, "scales", torch.float32, None)
    signs = read_part(codes, name, "signs", torch.uint8, None)
    keep = read_part(codes, name, "keep", torch.uint16, None).numpy()
    if len(keep) > 1 or len(scales) not in (0, 1, shape[0]) or (not len(scales) and len(signs) + len(keep)):
        raise CorruptArtifactError(
            f"The codes of {name!r} have {len(keep)} keep probabilities and {len(scales)} scales, which go with "
            f"no matrix of {shape[0]} rows. The artifact is damaged: compress it again."
        )
    if len(keep) and not may_keep(8 * len(signs), math.prod(shape), keep):
        raise _other_number(name, len(signs), "far more or fewer")
    return SignCodes(scales, signs.numpy()), keep


def _require_number(stored: SignCodes, name: str, kept: int) -> None:
    if len(stored.signs) != packed_bytes(kept, 1):
        raise _other_number(name, len(stored.signs), f"{kept:,}")


def _options(coding: Coding) -> BitDeltaOptions:
    assert isinstance(coding.options, BitDeltaOptions)
    return coding.options


def _scales(m: int, coding: Coding) -> int:
    return m if _options(coding).per_row else 1


def _keep_code(key: int, m: int, n: int, coding: Coding) -> UInt16Array | None:
    """Return the code of the mask, (1,); (0,) where all entries are kept; None where nothing fits."""
    if coding.accounting == "paper":
        return _ALL if coding.cr <= _CR_OF_ALL else _nearest_code(coding.cr)
    room = budget_bytes(m, n, coding.cr) - SCALE_BYTES * _scales(m, coding)
    if packed_bytes(m * n, 1) <= room:
        return _ALL
    fitting = fitting_code(key, n, m, 8 * (room - _CODE_BYTES))
    return fitting if len(fitting) else None


def _mask(key: int, shape: tuple[int, int], keep: UInt16Array) -> torch.Tensor | None:
    """Return which entries are kept, bool, (m, n); None where all are."""
    m, n = shape
    return torch.from_numpy(whole_mask(key, n, m, keep)) if len(keep) else None


def _nearest_code(cr: float) -> UInt16Array:
    return keep_codes(np.array([_CR_OF_ALL / cr]))


def _codes(scales: torch.Tensor, signs: UInt8Array, keep: UInt16Array) -> Codes:
    return {"scales": scales, "signs": torch.from_numpy(signs), "keep": torch.from_numpy(keep)}


def _other_number(name: str, found: int, kept: str) -> CorruptArtifactError:
    return CorruptArtifactError(
        f"The codes of {name!r} hold signs of {found:,} bytes, but its mask keeps {kept} entries. "
        "The artifact is damaged or was made by another version: compress it again."
    )


METHODS.register("bitdelta", BitDelta())
