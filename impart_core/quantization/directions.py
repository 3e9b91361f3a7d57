"""Singular vectors as symbols: which are kept, at which steps, and with which scales, within some bytes."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from impart_core.codec.tables import FloatArray, Int32Array, Int64Array
from impart_core.delta.factors import Factors
from impart_core.delta.svd import numerical_rank
from impart_core.quantization.ecsq import FACTORS, PART, SMALLEST_RATIO, Stored, head_bytes
from impart_core.quantization.feedback import Metric
from impart_core.quantization.rate_distortion import allocate, one_step, total_worth
from impart_core.quantization.trials import DROPPED, LARGEST, SIGNS, Trials, quantised

Filling = Literal["lagrangian", "one_step"]
STEPS = (2.6, 2.1, 1.75, 1.5, 1.25, 1.0, 0.8, 0.6, 0.42, 0.3, 0.2, 0.13, 0.09)
_LAST_RESORT = (SIGNS, LARGEST)  # of the first pair, where it fits at no step
_OTHERS = ([0], [1], [0, 3, 7])  # tried where tables weigh
_FEW_BYTES = 1 << 11  # there they do
_SCALE_BYTES = 1
_TRIES = 8


@dataclass(frozen=True)
class Shares:
    """How bytes are shared out, and how what is kept is scaled: settings of `ecsq`."""

    filling: Filling
    p: float
    gain: float


@dataclass(frozen=True)
class Directions:
    """Singular vectors at hand, each scaled to unit variance.

    Attributes:
        u: (K, m), float32.
        v: (K, n), float32, on the same device.
        weights: σ_k and what u_k and v_k were divided by, float64, (K,).
        importance: by which they are chosen, float64, (K,).
        metrics: by which they are coded and held against their codes; None: by plain sums.
        name: the tensor, for errors.
    """

    u: torch.Tensor
    v: torch.Tensor
    weights: FloatArray
    importance: FloatArray
    name: str
    metrics: tuple[Metric, Metric] | None = None

    @classmethod
    def of(
        cls,
        factors: Factors,
        shape: tuple[int, int],
        most: int,
        name: str,
        metrics: tuple[Metric, Metric] | None = None,
    ) -> "Directions":
        """Take the leading vectors, as far as they are no rounding, `most` at most.

        With metrics, in which u_k and v_k are of length 1, they are chosen by σ_k whatever their own lengths.
        """
        sigma = factors.sigma.cpu().double().numpy()
        count = min(most, numerical_rank(sigma, *shape))
        count = int((sigma[:count] > sigma[0] * SMALLEST_RATIO).sum())
        sides = [_unit(vectors[:count].float()) for vectors in (factors.u, factors.v)]
        (u, _), (v, _) = sides
        spread = torch.stack([spread for _, spread in sides]).prod(dim=0).cpu().numpy()
        weights = sigma[:count] * spread
        return cls(u, v, weights, weights if metrics is None else sigma[:count], name, metrics)

    def encoded(self, budget: int, shares: Shares) -> tuple[Stored | None, float]:
        """Return what is kept within a budget of bytes, None where nothing fits; and its energy."""
        trials = Trials.of(self.u, self.v, STEPS, _SCALE_BYTES, self.metrics)
        room = float(budget - head_bytes(len(STEPS)) - 1)
        for _ in range(_TRIES):
            chosen = self._chosen(trials, shares, room)
            if (chosen == DROPPED).all():
                break
            stored, energy = self._stored(trials, STEPS, chosen, shares.gain)
            over = len(stored.packed()[PART]) - budget
            if over <= 0:
                return stored, energy
            room -= over
        for step in _LAST_RESORT:
            first = replace(self, u=self.u[:1], v=self.v[:1], weights=self.weights[:1], importance=self.importance[:1])
            trials = Trials.of(first.u, first.v, (step,), _SCALE_BYTES)
            stored, energy = first._stored(trials, (step,), np.array([0]), 0.0)
            if len(stored.packed()[PART]) <= budget:
                return stored, energy
        return None, 0.0

    def _chosen(self, trials: Trials, shares: Shares, room: float) -> Int64Array:
        """Return the step of each direction."""
        relative = self.importance / self.importance.max()
        if shares.filling == "one_step":
            return one_step(trials, STEPS, relative ** (-shares.p / 2), room)
        return _most_worth(trials, relative[:, None] ** shares.p * np.sqrt(trials.kept), room)

    def _stored(
        self, trials: Trials, steps: tuple[float, ...], chosen: Int64Array, gain: float
    ) -> tuple[Stored, float]:
        """Return symbols and scales of the directions that take a step each, and how much of ‖ΔW‖² they keep."""
        rows = np.argsort(chosen, kind="stable")[int((chosen == DROPPED).sum()) :]
        taken = chosen[rows]
        kept, fitted = trials.kept[rows, taken], trials.fitted[rows, taken]
        scales = self.weights[rows] * fitted * kept**-gain
        energy = float((self.weights[rows] ** 2 * kept).sum()) * self.u.shape[1] * self.v.shape[1]
        symbols = self._symbols(rows, [steps[step] for step in taken])
        runs = [run.ravel() for run in np.split(symbols, np.flatnonzero(np.diff(taken)) + 1)]
        return Stored.of(FACTORS, (self.u.shape[1], self.v.shape[1]), runs, scales, self.name), energy

    def _symbols(self, rows: Int64Array, steps: list[float]) -> Int32Array:
        """Return the symbols of directions at a step each, (rows, m + n)."""
        index = torch.from_numpy(rows).to(self.u.device)
        one: float | torch.Tensor = steps[0]
        if one not in _LAST_RESORT:
            one = torch.tensor(steps, dtype=torch.float32)[:, None].to(self.u.device)
        metrics = self.metrics or (None, None)
        sides = [quantised(side[index], one, metric) for side, metric in zip((self.u, self.v), metrics, strict=True)]
        found: Int32Array = torch.cat(sides, dim=1).cpu().numpy().astype(np.int32)
        return found


def _most_worth(trials: Trials, worth: FloatArray, room: float) -> Int64Array:
    """Return the step of each direction; where tables weigh, from few steps if these come out better."""
    best = allocate(trials, worth, room)
    if room < _FEW_BYTES:
        for steps in _OTHERS:
            found = allocate(trials.only(steps), worth[:, steps], room)
            chosen = np.where(found >= 0, np.array(steps)[found], found)
            if total_worth(worth, chosen) > total_worth(worth, best):
                best = chosen
    return best


def _unit(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return vectors as rows scaled to unit variance, float32, and what they were divided by, float64."""
    spread = (vectors.double() ** 2).mean(dim=1).sqrt()
    spread = torch.where(spread == 0, 1.0, spread)
    return (vectors / spread[:, None]).float(), spread
