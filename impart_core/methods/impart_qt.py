"""ImPart-Qt: what ImPart's masks keep of the singular vectors, at few bits (paper §3.3, Algorithms 2 and 3)."""

import math
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from impart_core.base.errors import CorruptArtifactError
from impart_core.base.settings import MethodOptions
from impart_core.codec.mask import LEVELS, UInt16Array, keep_probability, kept_by_step, kept_of_columns, mask_key
from impart_core.codec.parts import Codes, read_part, require_proportion
from impart_core.delta.budget import budget_bytes, candidate_pairs, kept_fraction, vector_fraction
from impart_core.delta.factors import Factors
from impart_core.delta.svd import numerical_rank
from impart_core.methods.allocation import FloatArray, allocate, least_fitting
from impart_core.methods.base import METHODS, Calibration, Coding, FactorMethod, Projection
from impart_core.methods.impart import (
    BETA_BY_RATIO,
    USUAL_BETA,
    SparsityOptions,
    factor_mask,
    importance_of,
    is_usual,
)
from impart_core.quantization.cost import most_fitting, paper_alpha, paper_sparsity
from impart_core.quantization.options import LadderOptions
from impart_core.quantization.streams import STREAM_PARTS, require_plausible
from impart_core.quantization.vectors import (
    SIGMA,
    SIGMA_BYTES,
    IntArray,
    check_vectors,
    decode_vectors,
    encode_vectors,
    vectors_bytes,
)

_PAIR_BYTES = SIGMA_BYTES + 1  # a singular value, and a keep probability in steps of 1/256
_STEP = 256  # of the 65536 steps that masks can tell apart
_SHARING = 64  # pairs that take the same words, on the side that shares

Side = Literal["u", "v"]
# The part that holds the keep codes says which side shares; `keep`, none, was written up to version 4.
_KEEP_PARTS: dict[str, Side | None] = {"keep_shared_v": "v", "keep_shared_u": "u", "keep": None}
# Of each side, how many entries each pair would keep at each keep probability in steps of 1/256, (K, 256).
_Kept = tuple[IntArray, IntArray]


class ImpartQtOptions(LadderOptions, SparsityOptions):
    """ImPart's settings, and how what is kept is quantised.

    Before quantisation twice to eight times as much is kept as at 16 bits, where a lower C is better (`make methods`),
    and the paper's β at every ratio.
    """

    beta: float | None = Field(
        default=USUAL_BETA,
        ge=0.0,
        lt=1.0,
        description="pre-prune ratio β, the share of a square projection's singular vectors dropped beforehand; "
        f"{BETA_BY_RATIO}",
    )
    c: float = Field(default=0.5, ge=0.0, description=SparsityOptions.model_fields["c"].description)


class ImpartQt(FactorMethod):
    """The method.

    Codes of one projection, K pairs kept: `sigma` bfloat16 (K,), as ImPart has it; `keep_shared_v` or `keep_shared_u`
    uint8 (K,), code c standing for the keep probability (c + 1)/256; and the kept entries of U and V before rescaling
    as codes; see `quantization.streams`. What a pair costs beyond its entries counts for more than at 16 bits, so it
    has half the bytes.

    On the side that meets the inputs 64 pairs after each other share the random words of their masks. So there are few
    masks, and the solver factors the Hessian once for each. The expected error is the same: terms of two pairs have
    Σ_i u_ki·u_li = 0 as a factor where V's masks are shared, Σ_j v_kj·v_lj = 0 where U's are.
    """

    version: ClassVar[int] = 5
    parts: ClassVar[tuple[str, ...]] = ("sigma", "keep_shared_v", "keep_shared_u", *STREAM_PARTS)
    options_model: ClassVar[type[MethodOptions]] = ImpartQtOptions
    summary: ClassVar[str] = "ImPart, its kept entries at 8, 3 and 2 bits by rank; needs calibration text"

    def check(self, coding: Coding, largest_rank: int) -> None:
        """Refuse a ladder that asks for more vectors than any projection has."""
        _options(coding).ladder.check_rank(largest_rank, "the largest matrix")

    def highest_cr(self, m: int, n: int, coding: Coding) -> float:
        """Return the ratio at which the first pair, which is always kept whole, uses the room up."""
        options = _options(coding)
        if coding.accounting == "bytes":
            return 2 * m * n / self._bytes(np.array([m]), np.array([n]), options)
        return 16 * m * n / (options.ladder.groups[0].bits * (m + n))

    def expected_bytes(self, m: int, n: int, coding: Coding) -> int:
        """Return the budget; under the paper's count, the most bytes of what it counts and of what it leaves out."""
        if coding.accounting == "bytes":
            return budget_bytes(m, n, coding.cr)
        options, pairs = _options(coding), self.needed_rank(m, n, coding)
        widest = max(group.bits for group in options.ladder.groups) / 8
        # The count is met to about one pair and Algorithm 3's tolerance; masks keep 6 standard deviations more at most,
        # of entries that come and go in as many pairs as share them.
        counted = 2.1 * kept_fraction(m, n, coding.cr) * min(m, n) * (m + n) + widest * (m + n)
        together = widest * min(_SHARING, pairs)
        codes = min(counted + 6 * math.sqrt(together * counted) + 12 * together, widest * pairs * (m + n))
        groups = 8 * codes / options.fewest_bits / options.group_size + 2 * len(options.ladder.groups)
        return int(codes + 3 * groups) + _PAIR_BYTES * pairs + 64

    def needed_rank(self, m: int, n: int, coding: Coding) -> int:
        """Return the number of candidates that pre-pruning leaves, at least the first pair."""
        return max(1, candidate_pairs(min(m, n), _beta(m, n, coding)))

    def calibration(self, coding: Coding) -> Calibration:
        """Return what the solver needs."""
        return _options(coding).calibration

    def usual_cr(self, coding: Coding) -> float | None:
        """Return the ratio of as many entries at 16 bits, where β and C are in the paper's range."""
        options = _options(coding)
        return coding.cr * options.fewest_bits / 16 * options.entries_share if is_usual(options, coding) else None

    def encode_projection(self, projection: Projection, coding: Coding) -> Codes:
        """Return the codes of a delta that is not zero; see `Method.encode`."""
        options, name, (m, n) = _options(coding), projection.name, projection.shape
        factors = projection.factors()
        sigma = factors.sigma.cpu().double().numpy()
        importance = importance_of(sigma[: self.needed_rank(m, n, coding)], options)
        importance = importance[: numerical_rank(sigma, m, n)]  # what lies below is the rounding of the rest
        met = projection.inputs if options.calibration == "inputs" else None
        shared: Side = "u" if met and met.of_rows else "v"
        kept = _kept_of(name, (m, n), coding.seed, len(importance), shared)

        def encode(packed: int, by: ImpartQtOptions) -> Codes:
            keep = self._fit(importance, kept, (m, n), coding, packed)
            return self._encode(projection, factors, keep, shared, coding.seed, by)

        if coding.accounting == "paper":
            keep = _keep_codes(1.0 - _paper_drop(importance, m, n, coding))
            return self._encode(projection, factors, keep, shared, coding.seed, options)
        budget = budget_bytes(m, n, coding.cr)
        return options.within(budget, encode, budget / options.entries_share)

    @staticmethod
    def _encode(
        projection: Projection,
        factors: Factors,
        keep: UInt16Array,
        shared: Side,
        seed: int,
        options: ImpartQtOptions,
    ) -> Codes:
        weights = factors.sigma[: len(keep)].cpu().double().numpy()
        stored = torch.from_numpy(weights if options.rescale else weights * keep_probability(keep) ** 2).to(SIGMA)
        parts = encode_vectors(
            factors.u[: len(keep)],
            factors.v[: len(keep)],
            _weights(stored, keep),
            _masks(projection.name, projection.shape, seed, keep, shared),
            projection.inputs,
            projection.name,
            options,
        )
        return {"sigma": stored, f"keep_shared_{shared}": torch.from_numpy((keep // _STEP).astype(np.uint8)), **parts}

    def decode_factors(
        self, codes: Codes, name: str, shape: tuple[int, int], seed: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return σ_k û_k and v̂_k, both rescaled by 1/(1 − p_k); see `FactorMethod`."""
        sigma, keep, shared = _read(codes, name, shape)
        return decode_vectors(codes, name, _weights(sigma, keep), _masks(name, shape, seed, keep, shared))

    def check_codes(self, codes: Codes, name: str, shape: tuple[int, int], seed: int) -> None:
        """Check that the streams hold what both masks keep; neither these nor the factors are made. See `Method`."""
        sigma, keep, shared = _read(codes, name, shape)
        require_proportion(codes, name, len(sigma) * sum(shape))
        u, v = (
            kept_of_columns(mask_key(seed, name, role), side, keep, _sharing(role, shared))
            for role, side in zip("uv", shape, strict=True)
        )
        check_vectors(codes, name, u, v)

    def _fit(
        self,
        importance: FloatArray,
        entries: _Kept,
        shape: tuple[int, int],
        coding: Coding,
        budget: int,
    ) -> UInt16Array:
        """Return the keep codes of eq. 7 whose stored bytes fit the budget (Algorithm 3, with every byte charged).

        α is bisected for the number of pairs; γ then uses up what the boundary shift leaves, with one pair more where
        that fits.
        """
        rank, beta, options = min(shape), _beta(*shape, coding), _options(coding)

        def fits(keep: UInt16Array) -> bool:
            u, v = (side[np.arange(len(keep)), keep // _STEP] for side in entries)
            return self._bytes(u, v, options) <= budget

        alpha = least_fitting(lambda a: fits(_keep_codes(1.0 - allocate(importance, rank, a, beta))), beta)
        pairs = max(1, len(allocate(importance, rank, alpha, beta)))
        own = importance[: pairs + 1]
        if not fits(_keep_codes(own)):  # even at γ = 1, where pairs of no importance still take bytes
            own = importance[: most_fitting(lambda k: fits(_keep_codes(importance[:k])), 1, pairs)]
        gamma = least_fitting(lambda g: fits(_keep_codes(1.0 - (1.0 - own) * g)), 0.0)
        return _keep_codes(1.0 - (1.0 - own) * gamma)

    @staticmethod
    def _bytes(kept_u: IntArray, kept_v: IntArray, options: ImpartQtOptions) -> int:
        return _PAIR_BYTES * len(kept_u) + vectors_bytes(kept_u, kept_v, options)


def _read(codes: Codes, name: str, shape: tuple[int, int]) -> tuple[torch.Tensor, UInt16Array, Side | None]:
    """Return the singular values, the keep codes as masks take them, both (K,), and which side shares its words."""
    part = next((part for part in _KEEP_PARTS if part in codes), next(iter(_KEEP_PARTS)))
    keep = _whole_steps(read_part(codes, name, part, torch.uint8, None).numpy())
    sigma = read_part(codes, name, "sigma", SIGMA, len(keep))
    if len(keep) > min(shape):
        raise CorruptArtifactError(f"The codes of {name!r} have {len(keep)} vector pairs, more than its rank.")
    require_plausible(codes, name, sum(shape) * float(keep_probability(keep).sum()))
    return sigma, keep, _KEEP_PARTS[part]


def _sharing(role: str, shared: Side | None) -> int:
    return _SHARING if role == shared else 1


def _masks(
    name: str, shape: tuple[int, int], seed: int, keep: UInt16Array, shared: Side | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which entries of U and of V are kept, bool, (K, m) and (K, n)."""
    m, n = shape
    u, v = (factor_mask(seed, name, role, side, keep, _sharing(role, shared)) for role, side in (("u", m), ("v", n)))
    return u, v


def _kept_of(name: str, shape: tuple[int, int], seed: int, pairs: int, shared: Side) -> _Kept:
    def of_side(role: str, side: int) -> IntArray:
        sharing = _sharing(role, shared)
        own = kept_by_step(mask_key(seed, name, role), side, -(-pairs // sharing), LEVELS // _STEP)
        return own.repeat(sharing, axis=0)[:pairs]

    return of_side("u", shape[0]), of_side("v", shape[1])


def _options(coding: Coding) -> ImpartQtOptions:
    assert isinstance(coding.options, ImpartQtOptions)
    return coding.options


def _beta(m: int, n: int, coding: Coding) -> float:
    return 1.0 - vector_fraction(m, n, _options(coding).preprune_ratio(coding.cr, coding.accounting))


def _paper_drop(importance: FloatArray, m: int, n: int, coding: Coding) -> FloatArray:
    """Return p_k of the pairs that Algorithm 3 keeps under the paper's count, at least the first."""
    options, rank = _options(coding), min(m, n)
    beta = _beta(m, n, coding)

    def drop_at(alpha: float) -> FloatArray:
        return 1.0 - keep_probability(_keep_codes(1.0 - allocate(importance, rank, alpha, beta)))

    target = 1.0 - kept_fraction(m, n, coding.cr)
    drop = drop_at(paper_alpha(drop_at, rank, target, beta, options.ladder))
    if not len(drop):
        return np.zeros(1)
    if options.allocation == "uniform":  # a step of one probability is one of the whole: some pairs go instead
        drop = drop[: most_fitting(lambda k: paper_sparsity(drop[:k], rank, options.ladder) >= target, 1, len(drop))]
    return drop


def _keep_codes(probability: FloatArray) -> UInt16Array:
    """Round keep probabilities in (0, 1] to what is stored, and return their codes as masks take them."""
    return _whole_steps(np.clip(np.rint(probability * LEVELS / _STEP) - 1, 0, LEVELS // _STEP - 1))


def _whole_steps(codes: npt.NDArray[Any]) -> UInt16Array:
    """Return codes as masks take them from those that are stored."""
    return (codes.astype(np.uint16) * _STEP + (_STEP - 1)).astype(np.uint16)


def _weights(sigma: torch.Tensor, keep: UInt16Array) -> torch.Tensor:
    """Return σ_k/(1 − p_k)², float32: what pairs of entries before rescaling are multiplied by."""
    return (sigma.double() / torch.from_numpy(keep_probability(keep)) ** 2).float()


METHODS.register("impart-qt", ImpartQt())
