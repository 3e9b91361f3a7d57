"""ImPart: importance-aware sparsification of singular vectors (paper §3.2, Algorithm 1, eq. 7).

Pair k of ΔW = U diag(σ) Vᵀ is dropped with probability p_k, less for larger σ_k; what is kept of U and of V
is divided by 1 − p_k, so that the expectation over seeds is the kept part of ΔW itself.
"""

import math
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from impart_core.base.errors import ConfigError, CorruptArtifactError
from impart_core.base.settings import Accounting, MethodOptions
from impart_core.codec.mask import (
    LEVELS,
    UInt16Array,
    keep_codes,
    keep_probability,
    kept_of_columns,
    mask_from_levels,
    mask_key,
    mask_words,
    may_keep,
    word_levels,
)
from impart_core.codec.parts import Codes, read_part, require_proportion
from impart_core.delta.budget import (
    BYTES_PER_VALUE,
    BYTES_PER_VECTOR_PAIR,
    budget_bytes,
    candidate_pairs,
    kept_fraction,
    pair_bytes,
    vector_fraction,
)
from impart_core.delta.factors import Factors
from impart_core.delta.svd import numerical_rank
from impart_core.methods.allocation import (
    ROUNDING,
    FloatArray,
    MaskLevels,
    allocate,
    fit_bytes,
    fit_proportional,
    pairs_to_fit,
)
from impart_core.methods.base import METHODS, Coding, FactorMethod, Projection

USUAL_BETA, USUAL_C = 0.6, 1.0  # the edge of the paper's grid where the most vector pairs are kept
BETA_BY_RATIO = "null: 0.6 from CR 32 on, below that 1 − CR/80, at most 1 − 1/(2·CR)"

USUAL_FLOOR = 0.5  # chosen on validation items (docs/results.md)
_BETA_MEANT_FOR = 32  # the ratio of the paper's experiments


class SparsityOptions(MethodOptions):
    """The settings of ImPart's masks, and its ablations: each of the last three turned off leaves one idea out."""

    beta: float | None = Field(
        default=None,
        ge=0.0,
        lt=1.0,
        description="pre-prune ratio β, the share of a square projection's singular vectors dropped beforehand; "
        f"{BETA_BY_RATIO}; under the paper's count 0.6",
    )
    c: float = Field(
        default=1.0, ge=0.0, description="exponent C, how much more large singular values keep than small ones"
    )
    preprune: bool = Field(default=True, description="whether to pre-prune at all; else β is 0")
    allocation: Literal["importance", "uniform"] = Field(
        default="importance", description="what each pair keeps: more by importance, or uniform, the same of all"
    )
    rescale: bool = Field(
        default=True, description="whether kept entries are divided by their probability, to be right on average"
    )

    def preprune_ratio(self, cr: float, accounting: Accounting) -> float:
        """Return the β that is acted on at a ratio.

        By default the paper's 0.6 from CR 32 on; at lower ratios fewer pairs are left, in proportion to the ratio, but
        never fewer than fit whole. With 0.6 low ratios keep so many thinned pairs that the noise of thinning does more
        harm than the pairs do good (docs/results.md).
        """
        if not self.preprune:
            return 0.0
        if self.beta is not None:
            return self.beta
        if accounting == "paper":
            return USUAL_BETA
        return 1.0 - max((1.0 - USUAL_BETA) * min(1.0, cr / _BETA_MEANT_FOR), 1 / (2 * cr))

    def more_room(self, accounting: Accounting) -> str | None:
        """Under the paper's count, the pairs that are left share the room; see `MethodOptions.more_room`."""
        return "lower beta" if accounting == "paper" and self.preprune else None


class ImpartOptions(SparsityOptions):
    """ImPart's settings, and another rule than the paper's for what each pair keeps."""

    allocation: Literal["importance", "uniform", "proportional"] = Field(  # type: ignore[assignment]
        default="importance",
        description="what each pair keeps: more by importance, or uniform, the same of all, or proportional to its "
        "singular value",
    )
    floor: float | None = Field(
        default=None,
        ge=0.01,
        le=1,
        exclude_if=lambda value: value is None,  # ids of other allocations are those from before there was a floor
        description="with allocation=proportional: pairs that would keep a smaller share of their entries are dropped; "
        f"null: {USUAL_FLOOR:g}",
    )

    @model_validator(mode="after")
    def _settings_have_effect(self) -> Self:
        is_proportional = self.allocation == "proportional"
        if self.floor is not None and not is_proportional:
            raise ValueError("floor has no effect unless allocation is proportional. Leave it out")
        if is_proportional and (self.beta is not None or not self.preprune):
            raise ValueError(
                "beta and preprune have no effect while allocation is proportional, where floor says which pairs are "
                "dropped. Leave them out"
            )
        return self

    @property
    def lowest_share(self) -> float:
        """The least that a pair keeps with allocation=proportional."""
        return USUAL_FLOOR if self.floor is None else self.floor

    def more_room(self, accounting: Accounting) -> str | None:
        """The floor leaves room for the first pair; see `MethodOptions.more_room`."""
        return None if self.allocation == "proportional" else super().more_room(accounting)


def is_usual(options: SparsityOptions, coding: Coding) -> bool:
    """Return whether no more triplets are kept than with β 0.6 and C 1 at the same ratio."""
    beta = options.preprune_ratio(coding.cr, coding.accounting)
    return beta >= USUAL_BETA and options.c <= USUAL_C and options.allocation == "importance"


def importance_of(sigma: FloatArray, options: SparsityOptions) -> FloatArray:
    """Return s_k = (σ_k/σ₁)^C of eq. 7, float64, (K,); zero for every pair when the allocation is uniform."""
    if options.allocation == "uniform":
        return np.zeros_like(sigma)
    return np.asarray((sigma / sigma[0]) ** options.c, dtype=np.float64)


class Impart(FactorMethod):
    """The method.

    Codes of one projection, K pairs kept: `sigma` float32 (K,); `keep` uint16 (K,), code c standing for the
    keep probability (c + 1)/65536; `u` and `v` float16, the kept entries of the singular vectors before
    rescaling, vector after vector. Decoding always divides by the keep probability, once in u and once in v;
    without rescaling, `sigma` holds σ_k·(1 − p_k)² to make up for it.
    """

    version: ClassVar[int] = 3
    parts: ClassVar[tuple[str, ...]] = ("sigma", "keep", "u", "v")
    options_model: ClassVar[type[MethodOptions]] = ImpartOptions
    summary: ClassVar[str] = "entries of singular vectors at random, more of the important ones"

    def check(self, coding: Coding, largest_rank: int) -> None:  # noqa: ARG002
        """Refuse a β that pre-prunes more than the ratio asks for: γ would be negative, bytes left unused."""
        if _is_proportional(coding):
            return
        beta = _beta(coding)
        if 2 * coding.cr * (1 - beta) < 1 - ROUNDING:
            raise ConfigError(
                f"beta {beta:g} and CR {coding.cr:g} cannot go together: pre-pruning leaves {1 - beta:.1%} of the "
                f"vector pairs, but this ratio has room for {1 / (2 * coding.cr):.1%}. Lower beta to at most "
                f"{math.floor(1000 - 500 / coding.cr) / 1000:g}, or raise CR to at least "
                f"{math.ceil(500 / (1 - beta)) / 1000:g}."
            )

    def highest_cr(self, m: int, n: int, coding: Coding) -> float:
        """Return the ratio at which one whole vector pair fits: the first, whose p is 0 unless all are the same."""
        if coding.accounting == "bytes":
            return 2 * m * n / pair_bytes(m, n)
        if _is_proportional(coding):
            return 2 * m * n / (m + n)
        left = vector_fraction(m, n, _beta(coding))
        return candidate_pairs(min(m, n), 1.0 - left) * m * n / (min(m, n) * (m + n) * left)

    def expected_bytes(self, m: int, n: int, coding: Coding) -> int:
        """Return the budget; under the paper's count, the bytes that not one mask in ten million goes beyond."""
        if coding.accounting == "bytes":
            return budget_bytes(m, n, coding.cr)
        pairs = self.needed_rank(m, n, coding) if _is_proportional(coding) else _candidates(m, n, coding)
        rounded = pairs * (m + n) / (2 * LEVELS)  # by keep probabilities in steps
        mean = kept_fraction(m, n, coding.cr) * min(m, n) * (m + n) + rounded
        entries = min(pairs * (m + n), math.ceil(mean + 6 * math.sqrt(mean) + 12))
        return BYTES_PER_VALUE * entries + BYTES_PER_VECTOR_PAIR * pairs

    def needed_rank(self, m: int, n: int, coding: Coding) -> int:
        """Return the number of candidates that pre-pruning leaves, at least the first pair."""
        if _is_proportional(coding):
            least = _options(coding).lowest_share * (m + n)
            return max(1, min(min(m, n), int(kept_fraction(m, n, coding.cr) * min(m, n) * (m + n) / least) + 1))
        _, beta = sparsity_of(m, n, coding)
        return max(1, candidate_pairs(min(m, n), beta))

    def usual_cr(self, coding: Coding) -> float | None:
        """Return the ratio where β and C are in the paper's range: a lower β or a higher C keeps more of the tail."""
        return coding.cr if is_usual(_options(coding), coding) else None

    def encode_projection(self, projection: Projection, coding: Coding) -> Codes:
        """Return the codes of a delta that is not zero; see `Method.encode`."""
        options, name, (m, n) = _options(coding), projection.name, projection.shape
        factors = projection.factors()
        sigma = factors.sigma.cpu().double().numpy()
        importance = importance_of(sigma[: self.needed_rank(m, n, coding)], options)
        importance = importance[: numerical_rank(sigma, m, n)]  # what lies below is the rounding of the rest
        if options.allocation == "proportional":
            return _proportional(projection, factors, importance, coding)
        drop = allocate(importance, min(m, n), *sparsity_of(m, n, coding))
        if coding.accounting == "bytes":
            budget = budget_bytes(m, n, coding.cr)
            importance = importance[: pairs_to_fit(len(drop), m, n, budget)]
            words = levels_of(name, (m, n), coding.seed, len(importance))
            keep = fit_bytes(importance, words, budget)
        else:
            keep, words = keep_codes(1.0 - drop), levels_of(name, (m, n), coding.seed, len(drop))
        return _codes_of(factors, keep, words, options)

    def decode_factors(
        self, codes: Codes, name: str, shape: tuple[int, int], seed: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return σ_k û_k and v̂_k, both rescaled by 1/(1 − p_k); see `FactorMethod`."""
        sigma, keep, values = _read(codes, name, shape)
        scale = torch.from_numpy(1.0 / keep_probability(keep)).float()[:, None]
        sides = zip("uv", shape, strict=True)
        u, v = (scale * _scatter(values[role], seed, name, role, size, keep) for role, size in sides)
        return u * sigma[:, None], v

    def check_codes(self, codes: Codes, name: str, shape: tuple[int, int], seed: int) -> None:
        """Check that there are as many values as both masks keep, which are not made as a whole; see `Method`."""
        sigma, keep, values = _read(codes, name, shape)
        require_proportion(codes, name, len(sigma) * sum(shape))
        for role, size in zip("uv", shape, strict=True):
            kept = int(kept_of_columns(mask_key(seed, name, role), size, keep).sum())
            if kept != len(values[role]):
                raise _other_number(name, role, len(values[role]), f"{kept:,}")


def _proportional(projection: Projection, factors: Factors, importance: FloatArray, coding: Coding) -> Codes:
    """Return codes of which each pair keeps a share in proportion to its importance."""
    (m, n), options = projection.shape, _options(coding)
    words = levels_of(projection.name, (m, n), coding.seed, len(importance))
    if coding.accounting == "bytes":
        keep = fit_proportional(importance, words.pair_bytes, budget_bytes(m, n, coding.cr), options.lowest_share)
    else:
        room = kept_fraction(m, n, coding.cr) * min(m, n) * (1 + ROUNDING)  # in whole pairs
        keep = fit_proportional(importance, keep_probability, room, options.lowest_share)
    return _codes_of(factors, keep, words, options)


def _codes_of(factors: Factors, keep: UInt16Array, words: MaskLevels, options: SparsityOptions) -> Codes:
    """Return the codes of as many pairs as have a keep code."""
    sigma, pairs = factors.sigma.cpu().double().numpy(), len(keep)
    stored = sigma[:pairs] if options.rescale else sigma[:pairs] * keep_probability(keep) ** 2
    return {
        "sigma": torch.from_numpy(stored.astype(np.float32)),
        "keep": torch.from_numpy(keep),
        "u": select_kept(factors.u[:pairs], words.u, keep),
        "v": select_kept(factors.v[:pairs], words.v, keep),
    }


def _read(codes: Codes, name: str, shape: tuple[int, int]) -> tuple[torch.Tensor, UInt16Array, dict[str, torch.Tensor]]:
    """Return the singular values, the keep codes, both (K,), and the values of U and of V by role."""
    keep = read_part(codes, name, "keep", torch.uint16, None).numpy()
    sigma = read_part(codes, name, "sigma", torch.float32, None)
    if len(sigma) != len(keep) or len(keep) > min(shape):
        raise CorruptArtifactError(f"The codes of {name!r} do not have one singular value for each vector pair.")
    values = {role: read_part(codes, name, role, torch.float16, None) for role in "uv"}
    for role, size in zip("uv", shape, strict=True):
        if not may_keep(len(values[role]), size, keep):
            raise _other_number(name, role, len(values[role]), "far more or fewer")
    return sigma, keep, values


def _options(coding: Coding) -> ImpartOptions:
    assert isinstance(coding.options, ImpartOptions)
    return coding.options


def _is_proportional(coding: Coding) -> bool:
    return _options(coding).allocation == "proportional"


def _candidates(m: int, n: int, coding: Coding) -> int:
    return candidate_pairs(min(m, n), 1.0 - vector_fraction(m, n, _beta(coding)))


def _beta(coding: Coding) -> float:
    return _options(coding).preprune_ratio(coding.cr, coding.accounting)


def sparsity_of(m: int, n: int, coding: Coding) -> tuple[float, float]:
    """Return α_uv and β of an m×n projection; β is at most α, so that γ is not negative."""
    alpha = 1.0 - kept_fraction(m, n, coding.cr)
    return alpha, min(1.0 - vector_fraction(m, n, _beta(coding)), alpha)


def levels_of(name: str, shape: tuple[int, int], seed: int, pairs: int) -> MaskLevels:
    """Return the words of both masks of so many vector pairs."""
    sides = zip("uv", shape, strict=True)
    return MaskLevels(*(word_levels(mask_words(mask_key(seed, name, role), size, pairs)) for role, size in sides))


def select_kept(vectors: torch.Tensor, levels: UInt16Array, keep: UInt16Array) -> torch.Tensor:
    """Return the kept entries of singular vectors as rows, (K, m), vector after vector, float16."""
    mask = torch.from_numpy(mask_from_levels(levels[: len(keep)], keep))
    return vectors.cpu()[mask].half()


def factor_mask(seed: int, name: str, role: str, side: int, keep: UInt16Array, sharing: int = 1) -> torch.Tensor:
    """Return which entries of a factor's vectors are kept, bool, (K, side).

    Args:
        seed: the masks' seed.
        name: the projection's name.
        role: "u" or "v".
        side: entries of each vector.
        keep: keep codes of the pairs, (K,).
        sharing: how many pairs that follow each other take the same words.
    """
    words = mask_words(mask_key(seed, name, role), side, -(-len(keep) // sharing))
    return torch.from_numpy(mask_from_levels(word_levels(words), keep, sharing))


def _scatter(values: torch.Tensor, seed: int, name: str, role: str, rows: int, keep: UInt16Array) -> torch.Tensor:
    mask = factor_mask(seed, name, role, rows, keep)
    if int(mask.sum()) != len(values):
        raise _other_number(name, role, len(values), f"{int(mask.sum()):,}")
    dense = torch.zeros(mask.shape, dtype=torch.float32)
    dense[mask] = values.float()
    return dense


def _other_number(name: str, role: str, found: int, kept: str) -> CorruptArtifactError:
    return CorruptArtifactError(
        f"The codes of {name!r} hold {found:,} values of {role.upper()}, but its mask keeps {kept}. "
        "The artifact is damaged or was made by another version: compress it again."
    )


METHODS.register("impart", Impart())
