"""DARE-Qt: DARE's entries of the delta, quantised on their mask by GPTQ (paper §4)."""

import math
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from impart_core.base.errors import CorruptArtifactError
from impart_core.base.settings import MethodOptions
from impart_core.codec.half import EXPONENT_BYTES, exponent_part, half_exponent, read_exponent
from impart_core.codec.mask import (
    LEVELS,
    UInt16Array,
    count_kept,
    fitting_code,
    keep_codes,
    keep_probability,
    mask_key,
    most_kept,
    whole_mask,
)
from impart_core.codec.parts import Codes, read_part, require_proportion
from impart_core.delta.budget import budget_bytes
from impart_core.methods.base import METHODS, Calibration, Coding, Method, Projection
from impart_core.quantization.cost import SCALE_BYTES, most_fitting, stream_bytes
from impart_core.quantization.grid import RowRange
from impart_core.quantization.groups import Groups
from impart_core.quantization.options import QuantizeOptions
from impart_core.quantization.solve import quantize_matrix
from impart_core.quantization.streams import (
    MOST_ROWS,
    STREAM_PARTS,
    check_matrices,
    layout_bytes,
    pack_matrices,
    require_plausible,
    unpack_matrices,
)

_KEEP_BYTES = 2 + EXPONENT_BYTES  # and the exponent


class DareQtOptions(QuantizeOptions):
    """How many bits, and how kept entries become codes."""

    bits: Literal[2, 4, 8] = Field(default=4, description="of each kept entry")


class DareQt(Method):
    """The method.

    Codes of one projection: `keep` uint16 (1,) as DARE has it, and the kept entries, before they are divided by the
    keep probability and times 2^-e, as codes; see `quantization.streams`. `exponent` is e; see
    `codec.half`. Where nothing fits, `keep` is empty.
    """

    version: ClassVar[int] = 5
    parts: ClassVar[tuple[str, ...]] = ("keep", "exponent", *STREAM_PARTS)
    options_model: ClassVar[type[MethodOptions]] = DareQtOptions
    summary: ClassVar[str] = "entries of the delta at random, rescaled, at 2, 4 or 8 bits; needs calibration text"

    def highest_cr(self, m: int, n: int, coding: Coding) -> float:
        """Return the ratio at which one entry fits, but no more than steps of 1/65536 can tell from nothing."""
        options = _options(coding)
        if coding.accounting == "bytes":  # at half the steps, the lowest code's mask takes half the budget
            return min(2 * m * n / _bytes(m, 1, options), LEVELS / 2 * 16 / options.bits)
        return min(m * n, LEVELS) * 16 / options.bits

    def expected_bytes(self, m: int, n: int, coding: Coding) -> int:
        """Return the budget; under the paper's count, the bytes that not one mask in ten million goes beyond."""
        options = _options(coding)
        if coding.accounting == "bytes":
            return budget_bytes(m, n, coding.cr)
        return _bytes(m, most_kept(m * n, _paper_code(coding)), options)

    def calibration(self, coding: Coding) -> Calibration:
        """Return what the solver needs."""
        return _options(coding).calibration

    def encode_projection(self, projection: Projection, coding: Coding) -> Codes:
        """Return the codes of a delta; see `Method.encode`."""
        options, (m, n) = _options(coding), projection.shape
        if coding.accounting == "paper":
            return _encode(projection, _paper_code(coding), coding.seed, options)
        key = mask_key(coding.seed, projection.name, "delta")

        def encode(packed: int, by: DareQtOptions) -> Codes:
            return _encode(projection, fitting_code(key, n, m, _room(m, n, packed, options)), coding.seed, by)

        return options.within(budget_bytes(m, n, coding.cr), encode)

    def decode_codes(self, codes: Codes, name: str, shape: tuple[int, int], seed: int) -> torch.Tensor:
        """Return the kept entries divided by the keep probability; see `Method.decode`."""
        keep = _read(codes, name, shape)
        (values,) = unpack_matrices(codes, name, [_mask(seed, name, *shape, keep)])
        return values.mul_(2.0 ** read_exponent(codes, name)) / float(keep_probability(keep).prod())  # of none: 1

    def scaled(self, codes: Codes, name: str, shape: tuple[int, int], gains: torch.Tensor) -> Codes:  # noqa: ARG002
        """Return codes with the scale of each group times the gain of all; see `Method`."""
        most = torch.finfo(torch.float16).max
        return {**codes, "scales": (codes["scales"].float() * gains).clamp_(-most, most).half()}

    def check_codes(self, codes: Codes, name: str, shape: tuple[int, int], seed: int) -> None:
        """Check that the streams hold what the mask keeps, which is not made as a whole; see `Method`."""
        require_proportion(codes, name, math.prod(shape))
        keep, (m, n) = _read(codes, name, shape), shape

        def kept(span: RowRange) -> int:
            key = mask_key(seed, name, "delta")
            return count_kept(key, n, span.stop - span.start, keep, span.start) if len(keep) else 0

        check_matrices(codes, name, m, [kept])
        read_exponent(codes, name)


def _read(codes: Codes, name: str, shape: tuple[int, int]) -> UInt16Array:
    """Return the keep code, (1,), or (0,) where nothing is kept."""
    keep = read_part(codes, name, "keep", torch.uint16, None).numpy()
    if len(keep) > 1:
        raise CorruptArtifactError(f"The codes of {name!r} have {len(keep)} keep probabilities instead of one.")
    require_plausible(codes, name, math.prod(shape) * float(keep_probability(keep).sum()))
    return keep


def _encode(projection: Projection, keep: UInt16Array, seed: int, options: DareQtOptions) -> Codes:
    delta, inputs = projection.delta(), projection.inputs
    groups = _groups(_mask(seed, projection.name, *projection.shape, keep).to(delta.device), options)
    exponent = half_exponent(delta[groups.mask], projection.name)  # scales are float16 too
    made = quantize_matrix(
        delta * 2.0**-exponent,
        groups,
        inputs.curvature if inputs else None,
        projection.name,
        solver=options.solver,
        along_rows=bool(inputs and inputs.of_rows),
    )
    return {"keep": torch.from_numpy(keep), **exponent_part(exponent), **pack_matrices([made], options.lossless)}


def _options(coding: Coding) -> DareQtOptions:
    assert isinstance(coding.options, DareQtOptions)
    return coding.options


def _groups(mask: torch.Tensor, options: DareQtOptions) -> Groups:
    return Groups(mask, _ranges(len(mask), options), options.group_size)


def _ranges(m: int, options: DareQtOptions) -> tuple[RowRange, ...]:
    """Return all rows, in as many ranges as it takes for the layout to count them."""
    return tuple(RowRange(first, min(first + MOST_ROWS, m), options.bits) for first in range(0, m, MOST_ROWS))


def _mask(seed: int, name: str, m: int, n: int, keep: UInt16Array) -> torch.Tensor:
    """Return which entries are kept, bool, (m, n); none where there is no keep code."""
    if not len(keep):
        return torch.zeros(m, n, dtype=torch.bool)
    return torch.from_numpy(whole_mask(mask_key(seed, name, "delta"), n, m, keep))


def _paper_code(coding: Coding) -> UInt16Array:
    return keep_codes(np.array([min(1.0, 16 / (_options(coding).bits * coding.cr))]))


def _room(m: int, n: int, budget: int, options: DareQtOptions) -> int:
    """Return how many entries fit so many packed bytes."""
    return most_fitting(lambda kept: _bytes(m, kept, options) <= budget, 0, m * n)


def _bytes(m: int, kept: int, options: DareQtOptions) -> int:
    """Return the packed bytes of so many kept entries, at most where rows have several ranges."""
    ranges = len(_ranges(m, options))
    streams = stream_bytes((RowRange(0, m, options.bits),), (kept,), options.group_size).total
    # Each further range may round up its codes and zero points, and have one group more.
    return _KEEP_BYTES + streams + (ranges - 1) * (SCALE_BYTES + 3) + layout_bytes(ranges, 1, options.lossless)


METHODS.register("dare-qt", DareQt())
