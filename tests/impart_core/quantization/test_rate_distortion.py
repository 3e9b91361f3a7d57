"""Sharing out bytes by rate and distortion: within the room, for no less worth than one step for all."""

import numpy as np
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from impart_core.quantization.rate_distortion import allocate, one_step, total_worth
from impart_core.quantization.trials import DROPPED, Trials

STEPS = (2.6, 1.75, 1.0, 0.4)


def trials(count: int, m: int, n: int) -> Trials:
    rng = np.random.default_rng(count)
    u, v = (torch.from_numpy(rng.standard_normal((count, side)).astype(np.float32)) for side in (m, n))
    return Trials.of(u, v, STEPS, 1)


@given(st.integers(1, 24), st.floats(0, 3), st.floats(10, 4000))
@settings(max_examples=60, deadline=None)
@example(5, 0.0, 29.0)  # one direction fits
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


def common_step(chosen: np.ndarray, wider: np.ndarray) -> list[float]:
    """Return the common step of each kept direction, as its own tells."""
    return [STEPS[step] / factor for step, factor in zip(chosen, wider, strict=True) if step != DROPPED]


@given(st.integers(1, 24), st.floats(0, 2), st.floats(20, 4000))
@settings(max_examples=60, deadline=None)
def test_one_step_for_all_fits_and_is_the_same_for_all_that_are_kept(count: int, slope: float, room: float) -> None:
    tried = trials(count, 60, 90)
    wider = np.arange(1, count + 1) ** slope
    chosen = one_step(tried, STEPS, wider, room)
    assert tried.nbytes(chosen) <= room
    kept = (chosen != DROPPED).sum()
    assert (chosen[kept:] == DROPPED).all()
    assert (np.diff(chosen[:kept]) <= 0).all()
    found = [step for step, own in zip(common_step(chosen, wider), chosen, strict=False) if own != len(STEPS) - 1]
    assert not found or max(found) <= min(found) * 2.5 * (1 + 1e-9)  # steps are 1.5 to 2.5 apart


def test_one_step_in_more_room_is_finer() -> None:
    tried, wider = trials(20, 100, 100), np.arange(1, 21) ** 0.5
    found = [one_step(tried, STEPS, wider, room) for room in (60, 120, 250, 500, 1000, 2000)]
    sums = [float(tried.kept[(rows := chosen != DROPPED).nonzero()[0], chosen[rows]].sum()) for chosen in found]
    assert sums == sorted(sums)
    assert sums[-1] > sums[0]
