"""How deep a decomposition goes: to what any usual request can ask for, so that one serves them all."""

from dataclasses import dataclass

from impart_core.base.errors import ConfigError
from impart_core.delta.budget import candidate_pairs, kept_fraction, vector_fraction
from impart_core.delta.krylov import FloatArray, Needed
from impart_core.delta.svd import numerical_rank
from impart_core.methods.allocation import allocate
from impart_core.methods.base import METHODS, Coding
from impart_core.methods.impart import USUAL_BETA, USUAL_C

# The stated maximum: what ImPart keeps at these ratios with β 0.6 and C 1, of which the highest that serves is taken.
# Less is kept at any higher ratio or β, or lower C. The lower one is for methods that keep more entries of fewer bits.
LOWEST_CRS = (4.0, 2.0)


@dataclass(frozen=True)
class Depth:
    """How many triplets are wanted: what ImPart keeps at ratio `lowest_cr` with β 0.6 and C 1; None: all."""

    lowest_cr: float | None

    def needed(self, m: int, n: int) -> Needed | None:
        """Return the rule for an m×n delta: from its singular values, the number of triplets.

        It is the greater of two numbers, each with a margin: of Algorithm 1's pairs, which ⌊r(1−β)⌋ may cost one at
        a low β and not at a higher one, and a σ rounded to float32 another; and of those that fit whole, since
        `pairs_to_fit` may go one further, and LowRank rounds its number to the nearest.
        """
        if self.lowest_cr is None:
            return None
        alpha, beta = self._sparsity(m, n)
        fitting = int(min(m, n) * (1.0 - alpha))

        def count(sigma: FloatArray) -> int:
            kept = len(allocate((sigma / sigma[0]) ** USUAL_C, min(m, n), alpha, beta))
            return min(max(kept + 2, fitting + 1), self.most(m, n), len(sigma), numerical_rank(sigma, m, n))

        return count

    def most(self, m: int, n: int) -> int:
        """Return the most triplets of an m×n delta that may be wanted, whatever its singular values."""
        if self.lowest_cr is None:
            return min(m, n)
        # What pre-pruning leaves bounds ImPart; LowRank may round up to one more.
        return min(candidate_pairs(min(m, n), self._sparsity(m, n)[1]) + 1, min(m, n))

    def _sparsity(self, m: int, n: int) -> tuple[float, float]:
        """Return α_uv and β of an m×n delta at `lowest_cr`, as ImPart has them."""
        assert self.lowest_cr is not None
        alpha = 1.0 - kept_fraction(m, n, self.lowest_cr)
        return alpha, min(1.0 - vector_fraction(m, n, USUAL_BETA), alpha)


def depth_of(coding: Coding, m: int, n: int, factors_for: float | None = None) -> Depth | None:
    """Return how deep an m×n delta is decomposed; None where its method needs no decomposition.

    Args:
        coding: how the delta is coded.
        m: its rows.
        n: its columns.
        factors_for: the lowest ratio that the factors have to serve, where the request names one.

    Raises:
        ConfigError: the request names a depth that does not serve it.
    """
    method = METHODS.get(coding.method)
    if method.needed_rank(m, n, coding) is None:
        return None
    cr = method.usual_cr(coding)
    if factors_for is None:
        return Depth(next((lowest for lowest in LOWEST_CRS if cr is not None and cr >= lowest), None))
    if cr is None:
        raise ConfigError(
            f"factors_for {factors_for:g} cannot serve these settings of {coding.method!r}, which need every "
            f"singular triplet. Leave factors_for out, or use beta of at least {USUAL_BETA:g} and c of at most "
            f"{USUAL_C:g} with the importance allocation."
        )
    if factors_for > cr:
        raise ConfigError(
            f"factors_for {factors_for:g} keeps too few singular triplets for CR {coding.cr:g}. Lower it to at "
            f"most {max(cr, 1.0):g}, or leave it out."
        )
    return Depth(factors_for)
