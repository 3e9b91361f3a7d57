"""Delta-CoMe: the leading singular vectors whole, at fewer bits the lower their rank (Ping et al. 2024).

Mixed-precision delta compression, arXiv 2406.08903. The ratio sets how many vectors there are.
"""

from typing import ClassVar

import numpy as np
import torch

from impart_core.base.errors import CorruptArtifactError
from impart_core.base.settings import MethodOptions
from impart_core.codec.parts import Codes, read_part, require_proportion
from impart_core.delta.budget import budget_bytes, kept_fraction
from impart_core.delta.svd import numerical_rank
from impart_core.methods.base import METHODS, Calibration, Coding, FactorMethod, Projection
from impart_core.quantization.cost import most_fitting, paper_sparsity
from impart_core.quantization.options import LadderOptions
from impart_core.quantization.streams import STREAM_PARTS, require_plausible
from impart_core.quantization.vectors import (
    SIGMA,
    SIGMA_BYTES,
    check_vectors,
    decode_vectors,
    encode_vectors,
    vectors_bytes,
)


class DeltaCome(FactorMethod):
    """The method.

    Codes of one projection, K vectors kept: `sigma` bfloat16 (K,), and U and V as codes; see `quantization.streams`.
    """

    version: ClassVar[int] = 4
    parts: ClassVar[tuple[str, ...]] = ("sigma", *STREAM_PARTS)
    options_model: ClassVar[type[MethodOptions]] = LadderOptions
    summary: ClassVar[str] = "the leading singular vectors at 8, 3 and 2 bits by rank; needs calibration text"

    def check(self, coding: Coding, largest_rank: int) -> None:
        """Refuse a ladder that asks for more vectors than any projection has."""
        _options(coding).ladder.check_rank(largest_rank, "the largest matrix")

    def highest_cr(self, m: int, n: int, coding: Coding) -> float:
        """Return the ratio at which one vector pair fits."""
        if coding.accounting == "bytes":
            return 2 * m * n / _bytes(m, n, 1, _options(coding))
        return 16 * m * n / (_options(coding).ladder.groups[0].bits * (m + n))

    def expected_bytes(self, m: int, n: int, coding: Coding) -> int:
        """Return the bytes of all vectors that the ratio allows; a delta of lower rank has fewer."""
        if coding.accounting == "bytes":
            return budget_bytes(m, n, coding.cr)
        return _bytes(m, n, self.needed_rank(m, n, coding), _options(coding))

    def needed_rank(self, m: int, n: int, coding: Coding) -> int:
        """Return the most vectors that fit the budget; under the paper's count, of which the bits do, at least one."""
        if coding.accounting == "bytes":
            packed = int(budget_bytes(m, n, coding.cr) / _options(coding).entries_share)
            return self._fitting(m, n, packed, coding)
        return self._fitting(m, n, 0, coding)

    def calibration(self, coding: Coding) -> Calibration:
        """Return what the solver needs."""
        return _options(coding).calibration

    def usual_cr(self, coding: Coding) -> float:
        """Return the ratio of as many vectors at 16 bits: whole ones are fewer than thinned ones in the same room."""
        return coding.cr * _options(coding).fewest_bits / 16 * _options(coding).entries_share

    def encode_projection(self, projection: Projection, coding: Coding) -> Codes:
        """Return the codes of a delta that is not zero; see `Method.encode`."""
        options, (m, n) = _options(coding), projection.shape
        factors = projection.factors()
        rank = numerical_rank(factors.sigma.cpu().double().numpy(), m, n)

        def encode(packed: int, by: LadderOptions) -> Codes:
            kept = min(self._fitting(m, n, packed, coding), rank, len(factors.sigma))
            sigma = factors.sigma[:kept].cpu().to(SIGMA)
            masks = _whole(kept, m), _whole(kept, n)
            sides = factors.u[:kept], factors.v[:kept]
            parts = encode_vectors(*sides, sigma.float(), masks, projection.inputs, projection.name, by)
            return {"sigma": sigma, **parts}

        if coding.accounting == "paper":
            return encode(0, options)
        budget = budget_bytes(m, n, coding.cr)
        return options.within(budget, encode, budget / options.entries_share)

    def decode_factors(
        self,
        codes: Codes,
        name: str,
        shape: tuple[int, int],
        seed: int,  # noqa: ARG002
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return σ_k u_k and v_k; see `FactorMethod`."""
        m, n = shape
        sigma = _read(codes, name, shape)
        return decode_vectors(codes, name, sigma.float(), (_whole(len(sigma), m), _whole(len(sigma), n)))

    def check_codes(self, codes: Codes, name: str, shape: tuple[int, int], seed: int) -> None:  # noqa: ARG002
        """Check that the streams hold the entries of as many vectors, which are not made; see `Method`."""
        pairs = len(_read(codes, name, shape))
        require_proportion(codes, name, pairs * sum(shape))
        u, v = (np.full(pairs, side) for side in shape)
        check_vectors(codes, name, u, v)

    @staticmethod
    def _fitting(m: int, n: int, packed: int, coding: Coding) -> int:
        """Return how many vectors are within so many packed bytes, or the paper's count, at least one."""
        options, rank = _options(coding), min(m, n)
        room = 1.0 - kept_fraction(m, n, coding.cr)

        def fits(count: int) -> bool:
            if coding.accounting == "bytes":
                return _bytes(m, n, count, options) <= packed
            return paper_sparsity(np.zeros(count), rank, options.ladder) >= room

        return most_fitting(fits, 1, rank)


def _read(codes: Codes, name: str, shape: tuple[int, int]) -> torch.Tensor:
    """Return the singular values, bfloat16, (K,)."""
    sigma = read_part(codes, name, "sigma", SIGMA, None)
    if len(sigma) > min(shape):
        raise CorruptArtifactError(f"The codes of {name!r} have {len(sigma)} vector pairs, more than its rank.")
    require_plausible(codes, name, len(sigma) * sum(shape))
    return sigma


def _options(coding: Coding) -> LadderOptions:
    assert isinstance(coding.options, LadderOptions)
    return coding.options


def _whole(count: int, side: int) -> torch.Tensor:
    return torch.ones(count, side, dtype=torch.bool)


def _bytes(m: int, n: int, count: int, options: LadderOptions) -> int:
    return SIGMA_BYTES * count + vectors_bytes(np.full(count, m), np.full(count, n), options)


METHODS.register("delta-come", DeltaCome())
