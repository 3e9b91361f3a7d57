"""What a model is foretold to keep: a share, more with more gain, less with more noise."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from impart_core.delta.fidelity import Fidelity, fidelity_of
from impart_core.delta.quality import Quality, foretold

GAINS, COSINES = st.floats(-0.5, 1.5), st.floats(0.01, 1.0)


def _kept(gain: float, cosine: float) -> float:
    found = foretold([Fidelity(cosine, gain)])
    assert found is not None
    return found.kept


@given(gain=GAINS, cosine=COSINES)
def test_it_is_a_share(gain: float, cosine: float) -> None:
    assert 0.0 <= _kept(gain, cosine) <= 1.0


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


@given(kept=st.floats(0, 1), share=st.floats(0, 1), more=st.floats(0, 1))
def test_what_falls_short_of_a_share_does_so_by_more_than_the_error_and_of_every_larger_one(
    kept: float, share: float, more: float
) -> None:
    quality = Quality(kept=kept)
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
