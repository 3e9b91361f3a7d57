"""What a model keeps, foretold from what its codes keep of each matrix: no data, no run of the model."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from impart_core.base.settings import Frozen
from impart_core.delta.fidelity import Fidelity


class Rule(NamedTuple):
    """Share kept = exp(−(A·(1 − g)^P + B·n^Q)), g the gain of the codes and n their noise ‖ΔŴ − gΔW‖²/‖ΔW‖².

    Attributes:
        missing: A, for what is not there of the delta.
        missing_power: P.
        noise: B, for what is there beside it.
        noise_power: Q.
    """

    missing: float
    missing_power: float
    noise: float
    noise_power: float

    def kept(self, gain: float, noise: float) -> float:
        """Return the share of the gap in answer loss that is kept, from 0 to 1; a gain above 1 counts as 1."""
        missing = 1.0 - min(1.0, max(0.0, gain))
        return math.exp(-(self.missing * missing**self.missing_power + self.noise * noise**self.noise_power))


# Fitted by `make quality` to the first two tiny zoos; docs/results.md says how far off it is on others.
RULE = Rule(missing=1.379, missing_power=3.169, noise=7.08e-5, noise_power=3.012)
_ERROR = 0.26
_CLEARLY = 2.0  # errors; `make quality` says how often what is foretold to be so much too low is not


class Quality(Frozen):
    """The share of the gap in answer loss between base and fine-tuned that a model is foretold to keep.

    Attributes:
        kept: the share, from 0 to 1.
        error: mean absolute error of it on a zoo that the rule was not fitted to, the largest of three.
    """

    kept: float
    error: float = _ERROR

    def falls_short_of(self, share: float) -> bool:
        """Return whether less than a share is foretold by clearly more than the error: by more than twice as much."""
        return self.kept + _CLEARLY * self.error < share


def foretold(fidelities: Sequence[Fidelity]) -> Quality | None:
    """Foretell what a model keeps whose projections are coded, and which is otherwise as it was fine-tuned.

    Gain and noise are means over matrices.

    Args:
        fidelities: of each projection.

    Returns:
        The share; None where nothing is known of any matrix.
    """
    if not fidelities:
        return None
    return Quality(kept=RULE.kept(*means(fidelities)))


def means(fidelities: Sequence[Fidelity]) -> tuple[float, float]:
    """Return the mean gain and the mean noise of matrices."""
    return statistics.fmean(one.gain for one in fidelities), statistics.fmean(one.noise for one in fidelities)
