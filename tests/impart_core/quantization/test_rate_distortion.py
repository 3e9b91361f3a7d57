"""Sharing out bytes by rate and distortion: within the room, for no less worth than one step for all."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.quantization.rate_distortion import (
    DROPPED,
    LARGEST,
    SIGNS,
    Trials,
    allocate,
    cosine_squared,
    quantised,
    total_worth,
)

STEPS = (2.6, 1.75, 1.0, 0.4)


def trials(count: int, m: int, n: int) -> Trials:
    rng = np.random.default_rng(count)
    u, v = (rng.standard_normal((count, side)).astype(np.float32) for side in (m, n))
    return Trials.of(u, v, STEPS, 1)


@given(st.integers(1, 24), st.floats(0, 3), st.floats(10, 4000))
@settings(max_examples=60, deadline=None)
def test_a_choice_fits_and_is_worth_no_less_than_as_many_at_one_step(count: int, slope: float, room: float) -> None:
    tried = trials(count, 60, 90)
    worth = np.arange(1, count + 1)[:, None] ** -slope * np.sqrt(tried.kept)
    chosen = allocate(tried, worth, room)
    assert tried.nbytes(chosen) <= room
    assert set(chosen.tolist()) <= {DROPPED, *range(len(STEPS))}
    for step in range(len(STEPS)):
        alone = np.full(count, DROPPED)
        while (alone == DROPPED).any():
            more = alone.copy()
            more[(alone == DROPPED).argmax()] = step
            if tried.nbytes(more) > room:
                break
            alone = more
        assert total_worth(worth, chosen) >= 0.9 * total_worth(worth, alone)


def test_more_room_is_worth_more() -> None:
    tried = trials(20, 100, 100)
    worth = np.arange(1, 21)[:, None] ** -0.9 * np.sqrt(tried.kept)
    found = [total_worth(worth, allocate(tried, worth, room)) for room in (60, 120, 250, 500, 1000, 2000)]
    assert found == sorted(found)
    assert found[0] > 0


@pytest.mark.parametrize(("step", "bits", "kept"), [(2.6, 0.904, 0.607), (1.75, 1.400, 0.796), (1.0, 2.105, 0.923)])
def test_gaussian_entries_take_the_bits_and_keep_the_energy_of_theory(step: float, bits: float, kept: float) -> None:
    entries = np.random.default_rng(0).standard_normal((1, 1_000_000)).astype(np.float32)
    symbols = quantised(entries, step)
    shares = np.unique(symbols, return_counts=True)[1] / symbols.size
    assert -(shares * np.log2(shares)).sum() == pytest.approx(bits, abs=0.005)
    assert cosine_squared(entries, symbols)[0] == pytest.approx(kept, abs=0.003)


def test_the_last_resorts_are_signs_and_the_largest_entry() -> None:
    entries = np.array([[0.5, -3.0, 0.0, 1.0]], dtype=np.float32)
    assert quantised(entries, SIGNS).tolist() == [[1, -1, 0, 1]]
    assert quantised(entries, LARGEST).tolist() == [[0, -1, 0, 0]]
