"""What quantised directions take and keep: as in theory, as counted out, in as many kernels for many as for one."""

import numpy as np
import pytest
import torch

from impart_core.methods import METHODS
from impart_core.methods.base import Projection
from impart_core.quantization.trials import LARGEST, SIGNS, Trials, quantised
from tests.impart_core.methods.requests import request_of
from tests.pretend_device import PRETEND, Counts, counting
from tests.support import decaying_delta


@pytest.mark.parametrize(("step", "bits", "kept"), [(2.6, 0.904, 0.607), (1.75, 1.400, 0.796), (1.0, 2.105, 0.923)])
def test_gaussian_entries_take_the_bits_and_keep_the_energy_of_theory(step: float, bits: float, kept: float) -> None:
    entries = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 1_000_000)).astype(np.float32))
    symbols = quantised(entries, step).numpy()
    shares = np.unique(symbols, return_counts=True)[1] / symbols.size
    assert -(shares * np.log2(shares)).sum() == pytest.approx(bits, abs=0.005)
    assert Trials.of(entries, entries, (step,), 0).kept[0, 0] == pytest.approx(kept**2, abs=0.005)


def test_the_last_resorts_are_signs_and_the_largest_entry() -> None:
    entries = torch.tensor([[0.5, -3.0, 0.0, 1.0]])
    assert quantised(entries, SIGNS).tolist() == [[1, -1, 0, 1]]
    assert quantised(entries, LARGEST).tolist() == [[0, -1, 0, 0]]


def test_trials_are_what_is_counted_out_for_each_direction_and_step() -> None:
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.randn(5, side, generator=generator) for side in (30, 40))
    found = Trials.of(u, v, (1.5, 0.4), 1)
    for number, step in enumerate((1.5, 0.4)):
        for row in range(5):
            sides = [(side[row].double(), (side[row] / step).round().double()) for side in (u, v)]
            cosines = [float((exact @ code) ** 2 / ((exact @ exact) * (code @ code))) for exact, code in sides]
            fits = [float((exact @ code) / (code @ code)) for exact, code in sides]
            assert found.kept[row, number] == pytest.approx(np.prod(cosines))
            assert found.fitted[row, number] == pytest.approx(np.prod(fits))
            counts = np.bincount(np.abs(np.concatenate([code.numpy() for _, code in sides])).astype(int))
            assert found.histograms[number][row].tolist()[: len(counts)] == counts.tolist()


def asked_of_the_device(side: int, cr: float) -> tuple[Counts, int]:
    """Return what coding a square matrix asked of the device, and how many vectors could be kept."""
    projection = Projection.of(decaying_delta(side, side), "w")
    factors, delta = projection.factors(), projection.delta().to(PRETEND)
    u, sigma, v = (part.to(PRETEND) for part in (factors.u, factors.sigma, factors.v))
    on_device = type(factors)(u=u, sigma=sigma, v=v)
    request = request_of("ecsq", cr)
    with counting() as counts:
        METHODS.get("ecsq").encode(Projection("w", (side, side), lambda: delta, lambda: on_device), request)
    return counts, METHODS.get("ecsq").needed_rank(side, side, request) or 0


def test_launches_and_synchronisations_do_not_grow_with_the_number_of_directions() -> None:
    few, many = (asked_of_the_device(side, 8) for side in (32, 512))
    assert many[1] > 15 * few[1]
    for counts, _ in (few, many):  # 13 steps, some tries of what fits, and entries
        assert counts.launches.total() < 700
        assert counts.synchronisations.total() < 60
