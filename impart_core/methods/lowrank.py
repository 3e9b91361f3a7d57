"""LowRank: the leading singular triplets of ΔW, whole."""

from typing import ClassVar

import torch

from impart_core.base.settings import MethodOptions
from impart_core.codec.parts import Codes, read_part
from impart_core.delta.budget import BYTES_PER_VALUE, budget_bytes, kept_fraction
from impart_core.delta.svd import numerical_rank
from impart_core.methods.base import METHODS, Coding, FactorMethod, Projection

_SIGMA_BYTES = 4
_ROUNDING = 1e-9  # far above the rounding of r·d, far below one triplet


class LowRank(FactorMethod):
    """The method.

    Codes of one projection, k triplets kept: `sigma` float32 (k,); `u` float16 (k, m) and `v` float16 (k, n), the
    singular vectors as rows.
    """

    version: ClassVar[int] = 2
    parts: ClassVar[tuple[str, ...]] = ("sigma", "u", "v")
    options_model: ClassVar[type[MethodOptions]] = MethodOptions
    summary: ClassVar[str] = "the leading singular triplets, whole"

    def highest_cr(self, m: int, n: int, coding: Coding) -> float:
        """Return the ratio at which one triplet fits; under the paper's count, at which r·d rounds up to one."""
        if coding.accounting == "bytes":
            return 2 * m * n / _triplet_bytes(m, n)
        return 2 * m * n / (m + n)

    def expected_bytes(self, m: int, n: int, coding: Coding) -> int:
        """Return the bytes of all triplets that the ratio allows; a delta of lower rank has fewer."""
        return self.needed_rank(m, n, coding) * _triplet_bytes(m, n)

    def needed_rank(self, m: int, n: int, coding: Coding) -> int:
        """Return the most triplets that fit the budget; under the paper's count r·d, to the nearest (halves up)."""
        rank = min(m, n)
        if coding.accounting == "bytes":
            return min(rank, budget_bytes(m, n, coding.cr) // _triplet_bytes(m, n))
        return int(rank * kept_fraction(m, n, coding.cr) + 0.5 + _ROUNDING)

    def encode_projection(self, projection: Projection, coding: Coding) -> Codes:
        """Return the codes of a delta that is not zero; see `Method.encode`."""
        m, n = projection.shape
        factors = projection.factors()
        rank = numerical_rank(factors.sigma.cpu().double().numpy(), m, n)
        kept = min(self.needed_rank(m, n, coding), rank)
        return {
            "sigma": factors.sigma[:kept].cpu(),
            "u": factors.u[:kept].cpu().half(),
            "v": factors.v[:kept].cpu().half(),
        }

    def decode_factors(
        self,
        codes: Codes,
        name: str,
        shape: tuple[int, int],
        seed: int,  # noqa: ARG002
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return σ_k u_k and v_k; see `FactorMethod`."""
        m, n = shape
        sigma = read_part(codes, name, "sigma", torch.float32, None)
        u = read_part(codes, name, "u", torch.float16, len(sigma), m)
        v = read_part(codes, name, "v", torch.float16, len(sigma), n)
        return u.float() * sigma[:, None], v.float()


def _triplet_bytes(m: int, n: int) -> int:
    return BYTES_PER_VALUE * (m + n) + _SIGMA_BYTES


METHODS.register("lowrank", LowRank())
