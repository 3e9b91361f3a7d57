"""`make spectra`: how flat the spectra of the zoos' deltas are, and what `ecsq` makes of it.

For each fine-tune, means over its projections: the exponent a of σ_k ~ k^−a, fitted by least squares to the logarithms
of the leading half of the singular values; the share of ‖ΔW‖² in the first 8 directions; the flatness of
`impart_core.delta.quality`; and ‖ΔW‖/‖W‖, W the base's.
Then the share of the answer-loss gap that is kept with the base's projections, on 100 validation items; and how many of
the projections `ecsq` codes by their entries, not by singular vectors, at each ratio.
"""

import argparse
import math
from collections.abc import Iterator
from statistics import fmean
from typing import Any

import numpy as np
import torch

from impart_core.delta.svd import decompose
from impart_core.evaluation.result import Split
from impart_core.methods import METHODS
from impart_core.methods.base import Projection
from impart_core.quantization.ecsq import ENTRIES, read_stored
from tests.answers import FineTune, base_loss, deltas_of
from tests.bench.arguments import ratio
from tests.bench.study.grid import SHIPPED, ZOOS
from tests.impart_core.pipeline import config_of

_FIRST = 8
_ITEMS: tuple[Split, int] = ("validation", 100)
RATIOS = (8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(prog="make spectra", description=__doc__)
    parser.add_argument(
        "--zoos", nargs="*", choices=list(ZOOS), default=list(SHIPPED), help="those shipped, if not given"
    )
    parser.add_argument("--ratios", nargs="*", type=ratio, default=RATIOS, help="ratios to look at ecsq at")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    head = ["fine-tune", "exponent", f"energy in the first {_FIRST}", "flatness", "relative size", "kept without"]
    head += [f"by entries at CR {cr:g}" for cr in asked.ratios]
    print(f"| {' | '.join(head)} |", "|---|" + "--:|" * (len(head) - 1), sep="\n")
    for zoo in asked.zoos:
        for task in ZOOS[zoo].fine_tunes:
            deltas = deltas_of(task, zoo)
            shapes = zip(*_spectra(deltas.values()), strict=True)
            cells = [f"{value:.3f}" for value in (*map(fmean, shapes), _kept_without(task, zoo))]
            cells += [f"{sum(_is_by_entries(cr, *one) for one in deltas.items())}" for cr in asked.ratios]
            print(f"| {zoo} zoo, {task} | {' | '.join(cells)} |", flush=True)


def exponent(sigma: torch.Tensor) -> float:
    """Return a of σ_k ~ k^−a over the leading half of descending singular values, (K,)."""
    count = len(sigma) // 2
    slope, _ = np.polyfit(np.log(np.arange(1, count + 1)), sigma[:count].double().log().numpy(), 1)
    return -float(slope)


def _kept_without(task: str, zoo: str) -> float:
    """Return the share of the gap that embeddings, head, norms and biases keep without projections."""
    model, base = FineTune(task, zoo), base_loss(task, zoo, *_ITEMS)
    tuned = model.answer_loss(*_ITEMS)
    return (base - model.without_deltas().answer_loss(*_ITEMS)) / (base - tuned)


def _spectra(deltas: Any) -> Iterator[tuple[float, ...]]:
    for base, delta in deltas:
        sigma = torch.linalg.svdvals(delta)
        energies = sigma.square()
        size = math.sqrt(float(energies.sum() / base.float().square().sum()))
        yield (
            exponent(sigma),
            float(energies[:_FIRST].sum() / energies.sum()),
            float(energies.mean() / energies[0]),
            size,
        )


def _is_by_entries(cr: float, name: str, pair: tuple[torch.Tensor, torch.Tensor]) -> bool:
    _, delta = pair
    m, n = delta.shape
    projection = Projection(name, (m, n), lambda: delta, lambda: decompose(delta, name))
    stored = read_stored(METHODS.get("ecsq").encode(projection, config_of(cr, method="ecsq")), name, (m, n))
    return stored is not None and stored.kind == ENTRIES


if __name__ == "__main__":
    main()
