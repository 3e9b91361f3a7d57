"""Uniform scalar quantisation, and what directions take and keep at each of some steps.

A vector of unit variance is divided by a step and rounded to the nearest integer; the wider the step, the fewer bits
its symbols take, below one where most are zero. With a wide step half of it is the dead zone: on Gaussian entries no
other thresholds keep more at the same entropy, and reconstruction at the integers themselves keeps as much as at
centroids, but for a factor that the scale takes over (Sullivan 1996).

All of it runs where the vectors lie, in as many kernels for a thousand directions as for one; what is found is fetched
at once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from impart_core.codec.tables import MOST_MAGNITUDE, FloatArray, Int64Array, table_bytes
from impart_core.quantization.feedback import Metric

# Steps that are none: every entry is its sign, which takes one bit whatever the entries; or only the largest is.
SIGNS, LARGEST = math.inf, 0.0
DROPPED = -1
_ROUNDING = 1e-6  # of a row's largest entry: what is below is taken for zero
_UNSEEN = 0.05  # of a symbol, as counted in a table that has none of its magnitude
_STRETCH = 2  # how much larger than all entries one may get to be by others' errors; the few above are counted as that


def quantised(entries: torch.Tensor, step: float | torch.Tensor, metric: Metric | None = None) -> torch.Tensor:
    """Return the symbols of entries, int16, rows of any number.

    Args:
        entries: of about unit variance, float32.
        step: more than 0, or `SIGNS` or `LARGEST`; or one for each row, (rows, 1), float32.
        metric: in which the error of an entry is made up for in others; None: each is rounded by itself.
    """
    if isinstance(step, float) and step in (SIGNS, LARGEST):
        share = _ROUNDING if step == SIGNS else 1 - _ROUNDING
        magnitudes = entries.abs()
        counts = magnitudes > share * magnitudes.amax(dim=-1, keepdim=True)
        return (entries.sign() * counts).short()
    scaled = entries / step
    if metric is not None:
        return metric.rounded(scaled, MOST_MAGNITUDE).short()
    return scaled.round_().clamp_(-MOST_MAGNITUDE, MOST_MAGNITUDE).short()


@dataclass(frozen=True)
class Trials:
    """What directions take and keep at each of some steps.

    Attributes:
        histograms: for each step how many symbols of each direction have each magnitude, int64, (K, S + 1).
        kept: cos² of the direction and its code, (K, steps): that of u times that of v.
        fitted: ⟨u, û⟩⟨v, v̂⟩/(‖û‖²‖v̂‖²), the scale of a least-squares fit, (K, steps); 0 where nothing is kept.
        extra: bytes that each kept direction takes besides its symbols.
    """

    histograms: tuple[Int64Array, ...]
    kept: FloatArray
    fitted: FloatArray
    extra: int

    @classmethod
    def of(
        cls,
        u: torch.Tensor,
        v: torch.Tensor,
        steps: Sequence[float],
        extra: int,
        metrics: tuple[Metric, Metric] | None = None,
    ) -> "Trials":
        """Try each step on directions of unit variance, float32, on one device.

        Args:
            u: (K, m).
            v: (K, n).
            steps: those to try.
            extra: bytes that each kept direction takes besides its symbols.
            metrics: by which u and v are quantised, and products taken; None: by plain sums.
        """
        largest = (_STRETCH if metrics else 1) * float(torch.stack([side.abs().amax() for side in (u, v)]).amax())
        widths = [2 if step in (SIGNS, LARGEST) else 2 + min(MOST_MAGNITUDE, int(largest / step)) for step in steps]
        counts, sums = [], []
        seen = (u, v) if metrics is None else (u @ metrics[0].matrix, v @ metrics[1].matrix)
        for step, width in zip(steps, widths, strict=True):
            histogram = torch.zeros(len(u), width, dtype=torch.int64, device=u.device)
            for at, side in enumerate((u, v)):
                symbols = quantised(side, step, metrics[at] if metrics else None)
                magnitudes = symbols.abs().long().clamp_max(width - 1)
                histogram.scatter_add_(1, magnitudes, torch.ones_like(magnitudes))
                sums.append((seen[at].double() * symbols).sum(dim=1))
                if metrics is None:
                    sums.append((magnitudes * magnitudes).sum(dim=1).double())
                else:
                    sums.append(((symbols.float() @ metrics[at].matrix).double() * symbols).sum(dim=1))
            counts.append(histogram)
        energies = [(side.double() * one).sum(dim=1) for side, one in zip((u, v), seen, strict=True)]
        found = torch.stack([*energies, *sums], dim=1).cpu().numpy()
        own = found[:, 2::4], found[:, 4::4]
        dots, norms = (found[:, 2 + at :: 4] * found[:, 4 + at :: 4] for at in (0, 1))
        energy = (found[:, 0] * found[:, 1])[:, None]
        some = (norms > 0) & (energy > 0) & (own[0] > 0) & (own[1] > 0)
        kept = np.divide(dots**2, energy * norms, out=np.zeros(dots.shape), where=some)
        fitted = np.divide(dots, norms, out=np.zeros(dots.shape), where=some)
        histograms = np.split(torch.cat(counts, dim=1).cpu().numpy(), np.cumsum(widths)[:-1], axis=1)
        return cls(tuple(_trimmed(histogram) for histogram in histograms), kept, fitted, extra)

    def only(self, steps: Sequence[int]) -> "Trials":
        """Return the trials of some of the steps, by number."""
        histograms = tuple(self.histograms[step] for step in steps)
        return Trials(histograms, self.kept[:, steps], self.fitted[:, steps], self.extra)

    def counts(self, chosen: Int64Array) -> dict[int, Int64Array]:
        """Return the histogram of the directions that chose a step, by its number."""
        used = np.unique(chosen[chosen != DROPPED]).tolist()
        return {step: self.histograms[step][chosen == step].sum(axis=0) for step in used}

    def nbytes(self, chosen: Int64Array) -> float:
        """Return the bytes of tables, symbols and what each kept direction takes besides, but for a rounding."""
        return sum(map(table_bytes, self.counts(chosen).values())) + self.extra * int((chosen != DROPPED).sum())

    def bits(self, chosen: Int64Array) -> FloatArray:
        """Return the bits of each direction at each step, (K, steps), by tables of those that chose it."""
        found, counts = np.empty(self.kept.shape), self.counts(chosen)
        for step, own in enumerate(self.histograms):
            found[:, step] = own @ _lengths(counts.get(step, own.sum(axis=0)))
        return found + 8 * self.extra


def _trimmed(histogram: Int64Array) -> Int64Array:
    """Leave out magnitudes above the largest that occurs, which is at least 1."""
    (occurring,) = histogram.sum(axis=0).nonzero()
    found: Int64Array = histogram[:, : max(1, int(occurring[-1])) + 1]
    return found


def _lengths(counts: Int64Array) -> FloatArray:
    """Return the bits of a symbol of each magnitude, its sign included."""
    smoothed = counts + _UNSEEN
    found: FloatArray = np.log2(smoothed.sum()) - np.log2(smoothed)
    found[1:] += 1
    return found
