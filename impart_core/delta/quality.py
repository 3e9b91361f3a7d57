"""What a model keeps, foretold from what its codes keep of each matrix: no data, no run of the model."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import torch

from impart_core.base.settings import Frozen
from impart_core.delta.fidelity import Fidelity
from impart_core.delta.svd import decompose


class Kept(NamedTuple):
    """What codes keep of a matrix.

    Attributes:
        fidelity: how much of its delta.
        flatness: of the delta; see `flatness_of`.
    """

    fidelity: Fidelity
    flatness: float


class Rule(NamedTuple):
    """Share kept = exp(−mean(A·(1 − g)^P·f^−R + B·n^Q·f^S)), the mean over matrices.

    g is the gain of a matrix's codes, n their noise ‖ΔŴ − gΔW‖²/‖ΔW‖², and f the flatness of ΔW. A direction that is
    missing costs more where there are few, and noise, which goes to all directions, less.

    Attributes:
        missing: A, for what is not there of the delta.
        missing_power: P.
        missing_flatness: R.
        noise: B, for what is there beside it.
        noise_power: Q.
        noise_flatness: S.
    """

    missing: float
    missing_power: float
    missing_flatness: float
    noise: float
    noise_power: float
    noise_flatness: float

    def kept(self, matrices: Sequence[Kept]) -> float:
        """Return the share of the gap in answer loss that is kept, from 0 to 1; a gain above 1 counts as 1."""
        return math.exp(-statistics.fmean(map(self._lost, matrices)))

    def _lost(self, matrix: Kept) -> float:
        flatness = min(FLATTEST, max(STEEPEST, matrix.flatness))
        gone = 1.0 - min(1.0, max(0.0, matrix.fidelity.gain))
        missing = self.missing * gone**self.missing_power * flatness**-self.missing_flatness
        noise = self.noise * matrix.fidelity.noise**self.noise_power * flatness**self.noise_flatness
        return float(missing + noise)


# What is steeper counts as the first, since it proves no more sensitive; what is flatter than any counts as the second.
STEEPEST, FLATTEST = 0.03, 0.25
# Fitted by `make quality`; docs/results.md says how far off it is on zoos that it was not fitted to.
RULE = Rule(0.0417, 3.473, 1.092, 0.0250, 2.543, 1.512)
# Mean absolute errors on zoos that the rule was not fitted to: the largest where the deltas' mean flatness is below the
# limit, and that of the zoo above.
_FLAT, _ERROR, _ERROR_IF_FLAT = 0.1, 0.08, 0.25
_CLEARLY = 2.0  # errors; `make quality` says how often what is foretold to be so much too low is not


class Quality(Frozen):
    """The share of the gap in answer loss between base and fine-tuned that a model is foretold to keep.

    Attributes:
        kept: the share, from 0 to 1.
        error: mean absolute error of it on a zoo with such spectra that the rule was not fitted to.
    """

    kept: float
    error: float

    def falls_short_of(self, share: float) -> bool:
        """Return whether less than a share is foretold by clearly more than the error: by more than twice as much."""
        return self.kept + _CLEARLY * self.error < share


def foretold(matrices: Sequence[Kept]) -> Quality | None:
    """Foretell what a model keeps whose projections are coded, and which is otherwise as it was fine-tuned.

    Args:
        matrices: what is kept of each projection.

    Returns:
        The share; None where nothing is known of any matrix.
    """
    return Quality(kept=RULE.kept(matrices), error=error_of(matrices)) if matrices else None


def error_of(matrices: Sequence[Kept]) -> float:
    """Return the mean absolute error of what is foretold of matrices: larger where their deltas are flat."""
    return _ERROR_IF_FLAT if statistics.fmean(one.flatness for one in matrices) > _FLAT else _ERROR


def flatness_of(delta: torch.Tensor) -> float:
    """Return ‖ΔW‖²/(σ₁²·min(m, n)), the stable rank of a delta, (m, n), over the most that it can be.

    It is 1 where all singular values are alike, and 1/min(m, n) where there is one.
    """
    matrix = delta.float()
    largest = float(decompose(matrix, "delta", lambda _: 1).sigma[0])
    return float((matrix / largest).square().sum()) / min(matrix.shape) if largest else 0.0
