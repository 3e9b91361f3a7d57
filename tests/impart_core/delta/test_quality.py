"""What a model is foretold to keep: a share, more with more gain, less with more noise; and how flat a delta is."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from impart_core.delta.fidelity import Fidelity, fidelity_of
from impart_core.delta.quality import FLATTEST, STEEPEST, Kept, Quality, flatness_of, foretold

GAINS, COSINES, FLATNESSES = st.floats(-0.5, 1.5), st.floats(0.01, 1.0), st.floats(0.0, 1.0)


def _kept(gain: float, cosine: float, flatness: float = 0.05) -> float:
    found = foretold([Kept(Fidelity(cosine, gain), flatness)])
    assert found is not None
    return found.kept


@given(gain=GAINS, cosine=COSINES, flatness=FLATNESSES)
def test_it_is_a_share(gain: float, cosine: float, flatness: float) -> None:
    assert 0.0 <= _kept(gain, cosine, flatness) <= 1.0


@given(cosine=COSINES, flatnesses=st.tuples(FLATNESSES, FLATNESSES))
def test_noise_harms_a_flat_delta_more_and_what_is_missing_a_steep_one(
    cosine: float, flatnesses: tuple[float, float]
) -> None:
    steep, flat = sorted(flatnesses)
    assert _kept(1.0, cosine, steep) >= _kept(1.0, cosine, flat)
    assert _kept(0.5, 1.0, steep) <= _kept(0.5, 1.0, flat)


def test_what_is_steeper_or_flatter_than_any_that_was_measured_counts_as_the_last_one_that_was() -> None:
    assert _kept(0.5, 0.5, 0.0) == _kept(0.5, 0.5, STEEPEST)
    assert _kept(0.5, 0.5, 1.0) == _kept(0.5, 0.5, FLATTEST)


@given(parts=st.lists(st.tuples(COSINES, GAINS, FLATNESSES), min_size=2, max_size=4))
def test_a_model_lies_between_its_matrices(parts: list[tuple[float, float, float]]) -> None:
    alone = [_kept(gain, cosine, flatness) for cosine, gain, flatness in parts]
    found = foretold([Kept(Fidelity(cosine, gain), flatness) for cosine, gain, flatness in parts])
    assert found is not None
    assert min(alone) - 1e-9 <= found.kept <= max(alone) + 1e-9


@pytest.mark.parametrize("shape", [(40, 60), (600, 300), (300, 600), (1, 7)])
def test_flatness_is_that_of_the_singular_values(shape: tuple[int, int]) -> None:
    delta = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    sigma = torch.linalg.svdvals(delta.double())
    assert flatness_of(delta) == pytest.approx(float((sigma / sigma[0]).square().mean()), rel=1e-4)


def test_the_flattest_delta_has_1_and_one_direction_the_least() -> None:
    assert flatness_of(torch.eye(20)) == pytest.approx(1.0)
    assert flatness_of(torch.outer(torch.arange(1.0, 21.0), torch.ones(30))) == pytest.approx(1 / 20)
    assert flatness_of(torch.eye(20) * 1e-30) == pytest.approx(1.0)  # squares below float32's least
    assert flatness_of(torch.zeros(20, 30)) == 0.0


@given(cosines=st.tuples(COSINES, COSINES), gain=GAINS)
def test_of_two_codes_with_equal_gain_the_one_nearer_the_delta_keeps_no_less(
    cosines: tuple[float, float], gain: float
) -> None:
    low, high = sorted(cosines)
    assert _kept(gain, low) <= _kept(gain, high)


@given(gains=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_of_two_codes_without_noise_the_longer_keeps_no_less(gains: tuple[float, float]) -> None:
    low, high = sorted(gains)
    assert _kept(low, 1.0) <= _kept(high, 1.0)


def test_the_delta_itself_keeps_all_and_of_no_matrix_nothing_is_foretold() -> None:
    assert _kept(1.0, 1.0) == 1.0
    assert _kept(0.0, 0.0) < 0.5
    assert foretold([]) is None


def test_of_flat_deltas_less_is_known() -> None:
    steep, flat = (foretold([Kept(Fidelity(0.5, 0.5), flatness)]) for flatness in (0.05, 0.2))
    assert steep is not None
    assert flat is not None
    assert steep.error < flat.error


@given(kept=st.floats(0, 1), error=st.floats(0, 1), share=st.floats(0, 1), more=st.floats(0, 1))
def test_what_falls_short_of_a_share_does_so_by_more_than_the_error_and_of_every_larger_one(
    kept: float, error: float, share: float, more: float
) -> None:
    quality = Quality(kept=kept, error=error)
    if quality.falls_short_of(share):
        assert kept + quality.error < share
        assert quality.falls_short_of(max(share, more))
    assert not quality.falls_short_of(kept)


def test_noise_is_what_a_code_has_beside_the_delta() -> None:
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(60, 40, generator=generator)
    code = 0.7 * delta + 2 * torch.randn(60, 40, generator=generator)
    found = fidelity_of(delta, code)
    beside = (code - found.gain * delta).square().sum() / delta.square().sum()
    assert found.noise == pytest.approx(float(beside), rel=1e-3)  # five digits of each are kept
