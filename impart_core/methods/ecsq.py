"""Entropy-coded scalar quantisation of the singular vectors, by rate and distortion (docs/methods.md).

Scalar quantisation with an entropy coder is within a quarter bit of the rate-distortion bound (Gish and Pierce 1968).
"""

import math
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator

from impart_core.base.settings import MethodOptions
from impart_core.codec.parts import Codes
from impart_core.delta.budget import MOST_SHARE, budget_bytes
from impart_core.delta.fidelity import fidelity_of
from impart_core.methods.base import METHODS, Calibration, Coding, Method, Projection
from impart_core.methods.terms import Terms
from impart_core.quantization.directions import Directions, Filling, Shares
from impart_core.quantization.ecsq import (
    LEAST_ENTRY,
    NOTHING,
    OLD_PART,
    PART,
    Stored,
    as_codes,
    head_bytes,
    one_entry_bytes,
    read_stored,
    signs_bytes,
)
from impart_core.quantization.entries import Magnitudes, encode_entries
from impart_core.quantization.kfac import Sensitivity, weighted_factors

Domain = Literal["auto", "factors", "entries"]
Metric = Literal["frobenius", "kfac"]
ShareBy = Literal["directions", "entries"]
_FROBENIUS: Metric = "frobenius"
_FEEDBACK = 0.5
_FEWEST_BITS = 1.0  # an entry: of as many vectors at most are tried
_PLENTY, _FEW = (32, 2.0), (64, 1.0)  # ratio, exponent: with few bytes more pairs are worth more than energy is
_SLACK = 2  # bytes: a scale, and what a stream is longer than its entropy


class EcsqOptions(MethodOptions):
    """The settings of entropy-coded scalar quantisation."""

    filling: Filling = Field(
        default="lagrangian",
        description="how bytes are shared out: by a Lagrangian, or by one step, wider by σ^(-p/2) for each vector",
    )
    p: float | None = Field(
        default=None,
        ge=0,
        le=4,
        description="exponent of singular values when bytes are shared out; null: 2 up to CR 32, 1 from CR 64 on",
    )
    gain: float = Field(
        default=1.0, ge=0, le=1, description="scale of what is kept: from least squares (0) to unbiased (1)"
    )
    domain: Domain = Field(
        default="auto", description="what is quantised: singular vectors, the matrix's entries, or what keeps more"
    )
    share_by: ShareBy = Field(
        default="directions",
        description="how a block's bytes are shared out among its matrices: for about as many singular vectors in "
        "each, or by their entries, so that each has the ratio that is asked for",
    )
    metric: Metric = Field(
        default=_FROBENIUS,
        description="what directions are the leading ones: of the delta, or by K-FAC of the delta weighted by the "
        "inputs and gradients of its layer; needs calibration text",
        exclude_if=lambda metric: metric == _FROBENIUS,
    )
    feedback: float = Field(
        default=_FEEDBACK,
        ge=0,
        le=1,
        description="what share of an entry's error the entries after it make up for, in the metric of metric kfac",
        exclude_if=lambda share: share == _FEEDBACK,
    )

    def exponent(self, cr: float) -> float:
        """Return the p that is acted on at a ratio: by default in a line in log CR between CR 32 and 64."""
        if self.p is not None:
            return self.p
        (low, most), (high, least) = _PLENTY, _FEW
        place = math.log(cr / low) / math.log(high / low)
        return most + (least - most) * min(1.0, max(0.0, place))

    @model_validator(mode="after")
    def _metric_has_effect(self) -> Self:
        if self.metric != _FROBENIUS and self.domain == "entries":
            raise ValueError(f"metric {self.metric} has no effect on entries. Leave domain or metric out")
        if self.metric == _FROBENIUS and self.feedback != _FEEDBACK:
            raise ValueError(f"feedback has no effect with metric {self.metric}. Leave it out, or set metric")
        return self


class Ecsq(Method):
    """The method.

    Codes of one projection: `symbols` uint8; of version 1 `codes`, see docs/format.md.
    """

    version: ClassVar[int] = 5
    packed: ClassVar[bool] = True
    parts: ClassVar[tuple[str, ...]] = (PART, OLD_PART)
    options_model: ClassVar[type[MethodOptions]] = EcsqOptions
    summary: ClassVar[str] = "singular vectors, quantised by rate and distortion and entropy-coded"

    def highest_cr(self, m: int, n: int, coding: Coding) -> float:
        """Return the ratio at which the signs of one vector pair fit, or those of all entries where these are fewer."""
        return 2 * m * n / _smallest(m, n, _options(coding).domain)

    def expected_bytes(self, m: int, n: int, coding: Coding) -> int:
        """Return the budget: both accountings count bytes, since an entropy coder has no other measure."""
        return budget_bytes(m, n, coding.cr)

    def weight(self, m: int, n: int, coding: Coding) -> float:
        """Return m + n, what a pair of vectors costs; or m·n, by entries, and where no vectors are coded."""
        options = _options(coding)
        return m * n if "entries" in (options.share_by, options.domain) else m + n

    def needed_rank(self, m: int, n: int, coding: Coding) -> int | None:
        """Return how many pairs fit at one bit an entry in the most bytes there may be; None where none are coded."""
        if _options(coding).domain == "entries":
            return None
        return _most_pairs(m, n, MOST_SHARE * budget_bytes(m, n, coding.cr))

    def usual_cr(self, coding: Coding) -> float:
        """Return the ratio of as many vectors at 16 bits."""
        return coding.cr if _options(coding).domain == "entries" else coding.cr * _FEWEST_BITS / (16 * MOST_SHARE)

    def calibration(self, coding: Coding) -> Calibration:
        """Return what the metric follows from."""
        return "none" if _options(coding).metric == _FROBENIUS else "gradients"

    def reads_delta(self, coding: Coding) -> bool:  # noqa: ARG002 - always
        """Return True: entries may be coded, and what is kept is measured against them."""
        return True

    def encode_projection(self, projection: Projection, coding: Coding) -> Codes:
        """Return the codes of a delta that is not zero; see `Method.encode`."""
        options, (m, n) = _options(coding), projection.shape
        budget, found = budget_bytes(m, n, coding.cr) if projection.budget is None else projection.budget, None
        smallest = _smallest(m, n, options.domain)
        if budget >= smallest and not float(projection.delta().abs().max()) < LEAST_ENTRY:  # NaN is refused below
            shares = Shares(options.filling, options.exponent(coding.cr), options.gain)
            found = _encoded(projection, budget, options, shares)
        return as_codes(NOTHING) if found is None else found.packed()

    def decode_codes(self, codes: Codes, name: str, shape: tuple[int, int], seed: int) -> torch.Tensor:  # noqa: ARG002
        """Return Σ_k s_k û_k v̂_kᵀ, or the entries themselves; see `Method.decode`."""
        stored = read_stored(codes, name, shape)
        return torch.zeros(shape) if stored is None else stored.delta(name)

    def terms(self, codes: Codes, name: str, shape: tuple[int, int], seed: int) -> Terms:  # noqa: ARG002
        """Return Σ_k g_k s_k û_k v̂_kᵀ, or the entries times one gain; see `Method`."""
        stored = read_stored(codes, name, shape)
        return Terms(torch.zeros(shape)) if stored is None else Terms(*stored.factors(name))

    def scaled(self, codes: Codes, name: str, shape: tuple[int, int], gains: torch.Tensor) -> Codes:
        """Return codes with scales times gains, each a step of 2^(1/16) at the nearest; see `Method`."""
        stored = read_stored(codes, name, shape)
        return codes if stored is None else stored.scaled(gains.double().numpy(), name).packed()

    def check_codes(self, codes: Codes, name: str, shape: tuple[int, int], seed: int) -> None:  # noqa: ARG002
        """Check that the stream is of its tables, a little of it at a time; see `Method`."""
        stored = read_stored(codes, name, shape)
        if stored is not None:
            stored.check(name)


def _options(coding: Coding) -> EcsqOptions:
    assert isinstance(coding.options, EcsqOptions)
    return coding.options


def _most_pairs(m: int, n: int, budget: float) -> int:
    """Return how many pairs are tried: as many as fit a budget of bytes at one bit an entry, at least one."""
    return max(1, min(m, n, int(8 * budget / (_FEWEST_BITS * (m + n)))))


def _smallest(m: int, n: int, domain: Domain) -> int:
    """Return the fewest bytes in which anything is kept of an m×n matrix, whatever it is."""
    if domain == "entries":
        return min(signs_bytes(m * n), one_entry_bytes(m * n))
    return signs_bytes(m + n if domain == "factors" else min(m + n, m * n))


def _encoded(projection: Projection, budget: int, options: EcsqOptions, shares: Shares) -> Stored | None:
    """Return what keeps more of ‖ΔW‖² within a budget of bytes, vectors or entries; None where nothing fits."""
    vectors, energy = None, 0.0
    sensitivity = None if options.metric == _FROBENIUS else projection.sensitivity
    if options.domain != "entries":
        rank = _most_pairs(*projection.shape, budget)
        directions = _directions(projection, rank, sensitivity, options.feedback)
        vectors, energy = directions.encoded(budget, shares)
    if options.domain == "factors":
        return vectors
    delta = projection.delta().float()
    whole = float((delta.double() ** 2).sum())
    if vectors is not None and sensitivity is not None:  # not orthogonal, so that energies do not add up
        cosine_squared = fidelity_of(delta.cpu(), vectors.delta(projection.name)).cosine_squared
        energy = cosine_squared * whole
    step, kept = Magnitudes.of(delta).best_step(budget - head_bytes(1) - _SLACK)
    if vectors is not None and kept * whole <= energy:
        return vectors
    gain = options.gain if options.domain == "entries" else min(options.gain, _most_gain(kept))
    return encode_entries(delta, budget, step, gain, projection.name) or vectors


def _most_gain(kept: float) -> float:
    """Return the most `gain` at which entries that keep a share of ‖ΔW‖² are no noisier than the delta is large.

    ‖ΔŴ − gΔW‖²/‖ΔW‖² of entries at least squares is ρ²(1 − ρ²), their gain g = ρ², and what scales them ρ^(−2·gain): it
    is 1 at ρ^(2 − 4·gain)·(1 − ρ²) = 1.
    """
    return 0.5 * (1 + math.log1p(-kept) / math.log(kept)) if 0 < kept < 0.5 else 1.0


def _directions(projection: Projection, rank: int, sensitivity: Sensitivity | None, feedback: float) -> Directions:
    """Return the leading directions by how sensitive predictions are; by the delta alone where that is not known."""
    shape, name = projection.shape, projection.name
    if sensitivity is None:
        return Directions.of(projection.factors(), shape, rank, name)
    weighted = weighted_factors(projection.delta().float(), sensitivity, rank, name, feedback)
    return Directions.of(weighted.factors, shape, rank, name, weighted.metrics)


METHODS.register("ecsq", Ecsq())
