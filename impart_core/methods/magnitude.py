"""Magnitude: the largest |ΔW| entries. Where they are depends on their values, so it is stored."""

import math
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from impart_core.base.settings import MethodOptions
from impart_core.codec.bitpack import packed_bytes
from impart_core.codec.half import EXPONENT_BYTES, decode_half, encode_half, read_exponent, scaled_half
from impart_core.codec.mask import BoolArray, UInt32Array
from impart_core.codec.parts import Codes, read_part, require_proportion
from impart_core.codec.positions import (
    Int64Array,
    PositionCodes,
    decode_positions,
    encode_positions,
    most_position_bytes,
    position_bytes,
)
from impart_core.delta.budget import BYTES_PER_VALUE, budget_bytes
from impart_core.methods.base import METHODS, Coding, Method, Projection

_FIXED_BYTES = 1 + EXPONENT_BYTES  # the remainders' width, and the exponent of the values


def largest(magnitudes: UInt32Array, count: int) -> BoolArray:
    """Return which entries are the `count` largest, (size,); of equal ones, those that come first.

    Args:
        magnitudes: |ΔW| row by row as the bits of float32, which rise with the values, (size,).
        count: how many, at most as many as there are.
    """
    if count == 0:
        return np.zeros(len(magnitudes), dtype=np.bool_)
    at = len(magnitudes) - count
    threshold = np.partition(magnitudes, at)[at]
    mask: BoolArray = magnitudes > threshold
    mask[np.flatnonzero(magnitudes == threshold)[: count - int(mask.sum())]] = True
    return mask


def fitting_positions(magnitudes: UInt32Array, budget: int) -> Int64Array:
    """Return the positions of the most of the largest entries whose values and positions fit the budget, rising.

    Bytes rise with every entry more, as splitting a gap shortens neither stream of the positions. So the most is
    found by search, between what a bitmap leaves room for and the least that an entry takes: its value and a bit.

    Args:
        magnitudes: see `largest`.
        budget: bytes for this projection's codes.
    """
    room, nonzero = budget - _FIXED_BYTES, int(np.count_nonzero(magnitudes))
    low = min(nonzero, max(0, (room - packed_bytes(len(magnitudes), 1)) // BYTES_PER_VALUE))
    high = min(nonzero, 8 * room // (8 * BYTES_PER_VALUE + 1))
    candidates = np.flatnonzero(largest(magnitudes, high))
    contested = ~largest(magnitudes, low)[candidates]
    place: npt.NDArray[np.int64] = np.zeros(high, dtype=np.int64)  # in the order of falling magnitude
    order = np.argsort(~magnitudes[candidates[contested]], kind="stable")
    place[np.flatnonzero(contested)[order]] = np.arange(low, high)

    def cost(count: int) -> int:
        return BYTES_PER_VALUE * count + position_bytes(candidates[place < count])

    return candidates[place < _most_that_fit(cost, low, high, room)]


def _most_that_fit(cost: Callable[[int], int], low: int, high: int, room: int) -> int:
    """Return the largest count in [low, high] whose rising cost fits, given that `low` does.

    The cost is close to linear, so that a step along the chord nearly always lands beside the answer; every
    other step halves what is left in case it does not.
    """
    low_cost, high_cost = cost(low), cost(high)
    if high_cost <= room:
        return high
    along_chord = True
    while high - low > 1:
        step = (room - low_cost) * (high - low) // (high_cost - low_cost) if along_chord else (high - low) // 2
        count = low + min(max(step, 1), high - low - 1)
        found = cost(count)
        if found <= room:
            low, low_cost = count, found
        else:
            high, high_cost = count, found
        along_chord = not along_chord
    return low


class Magnitude(Method):
    """The method.

    Codes of one projection, k entries kept: `values` float16 (k,), row by row, and their `exponent` (see `codec.half`);
    `width` uint8 (1,), `quotients` and `remainders` uint8, their positions in the flattened delta (see
    `impart_core.codec.positions`).
    """

    version: ClassVar[int] = 2
    parts: ClassVar[tuple[str, ...]] = ("values", "exponent", "width", "quotients", "remainders")
    options_model: ClassVar[type[MethodOptions]] = MethodOptions
    summary: ClassVar[str] = "the largest entries of the delta"

    def highest_cr(self, m: int, n: int, coding: Coding) -> float:
        """Return the ratio at which one entry fits wherever it is; under the paper's count, at which mn/CR is ½."""
        if coding.accounting == "bytes":
            return 2 * m * n / (_FIXED_BYTES + BYTES_PER_VALUE + most_position_bytes(1, m * n))
        return 2.0 * m * n

    def expected_bytes(self, m: int, n: int, coding: Coding) -> int:
        """Return the budget; under the paper's count, the most that so many entries can take."""
        if coding.accounting == "bytes":
            return budget_bytes(m, n, coding.cr)
        count = _nearest_count(m, n, coding.cr)
        return _FIXED_BYTES + BYTES_PER_VALUE * count + most_position_bytes(count, m * n)

    def encode_projection(self, projection: Projection, coding: Coding) -> Codes:
        """Return the codes of a delta that is not zero; see `Method.encode`."""
        m, n = projection.shape
        delta = projection.delta().cpu().flatten()
        magnitudes = delta.abs().numpy().view(np.uint32)
        if coding.accounting == "bytes":
            positions = fitting_positions(magnitudes, budget_bytes(m, n, coding.cr))
        else:
            count = min(_nearest_count(m, n, coding.cr), int(np.count_nonzero(magnitudes)))
            positions = np.flatnonzero(largest(magnitudes, count))
        stored = encode_positions(positions)
        return {
            **encode_half(delta[torch.from_numpy(positions)], "values", projection.name),
            "width": torch.tensor([stored.width], dtype=torch.uint8),
            "quotients": torch.from_numpy(stored.quotients),
            "remainders": torch.from_numpy(stored.remainders),
        }

    def decode_codes(self, codes: Codes, name: str, shape: tuple[int, int], seed: int) -> torch.Tensor:  # noqa: ARG002
        """Return the kept entries in their places; see `Method.decode`."""
        values, positions = _read(codes, name, shape)
        delta = torch.zeros(math.prod(shape))
        delta[torch.from_numpy(positions)] = decode_half(values, codes, name)
        return delta.reshape(shape)

    def scaled(self, codes: Codes, name: str, shape: tuple[int, int], gains: torch.Tensor) -> Codes:  # noqa: ARG002
        """Return codes with values times the gain of all; see `Method`."""
        return scaled_half(codes, "values", name, gains)

    def check_codes(self, codes: Codes, name: str, shape: tuple[int, int], seed: int) -> None:  # noqa: ARG002
        """Check that there is a position for each value; the delta is not made. See `Method`."""
        require_proportion(codes, name, math.prod(shape))
        _read(codes, name, shape)
        read_exponent(codes, name)


def _read(codes: Codes, name: str, shape: tuple[int, int]) -> tuple[torch.Tensor, Int64Array]:
    """Return the values, float16, and their positions in the flattened delta."""
    values = read_part(codes, name, "values", torch.float16, None)
    stored = PositionCodes(
        width=int(read_part(codes, name, "width", torch.uint8, 1)),
        quotients=read_part(codes, name, "quotients", torch.uint8, None).numpy(),
        remainders=read_part(codes, name, "remainders", torch.uint8, None).numpy(),
    )
    return values, decode_positions(stored, len(values), math.prod(shape), name)


def _nearest_count(m: int, n: int, cr: float) -> int:
    return min(m * n, int(m * n / cr + 0.5))


METHODS.register("magnitude", Magnitude())
