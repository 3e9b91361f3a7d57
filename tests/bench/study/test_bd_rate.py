"""BD-rates against values computed by hand, and the laws that they obey."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.study.bd_rate import bd_rate, quality_at


@st.composite
def curves(draw: st.DrawFn) -> list[tuple[float, float]]:
    """Curves whose quality, in steps of .001, rises with bytes."""
    points = draw(st.integers(3, 7))
    sizes = draw(st.lists(st.integers(1_000, 10_000_000), min_size=points, max_size=points, unique=True))
    quality = draw(st.lists(st.integers(0, 1000), min_size=points, max_size=points, unique=True))
    return [(float(size), step / 1000) for size, step in zip(sorted(sizes), sorted(quality), strict=True)]


def test_two_points_each_by_hand() -> None:
    """With two points the interpolation is a line: ln(100/200) at quality .5, 0 at 1, −ln 2 / 2 in the mean."""
    found = bd_rate([(100, 0.5), (400, 1.0)], [(200, 0.5), (400, 1.0)])
    assert found == pytest.approx(math.exp(-math.log(2) / 2) - 1)
    assert found == pytest.approx(-0.2929, abs=1e-4)


def test_only_the_common_interval_counts() -> None:
    """From .5 to .75 the first line goes from ln 200 to ln 400, the second from ln 400 to ln 800."""
    one = [(100, 0.25), (400, 0.75)]
    other = [(400, 0.5), (1600, 1.0)]
    assert bd_rate(one, other) == pytest.approx(-0.5)


def test_three_points_by_hand() -> None:
    """Points on a line in ln(bytes) stay on it: PCHIP's slopes there are the line's."""
    line = [(math.exp(1 + 2 * quality), quality) for quality in (0.1, 0.5, 0.9)]
    bowed = [(math.exp(1.3 + 2 * quality), quality) for quality in (0.2, 0.3, 0.8)]
    assert bd_rate(bowed, line) == pytest.approx(math.exp(0.3) - 1)


@given(curves(), st.floats(0.1, 10.0))
def test_a_curve_shifted_in_bytes_gives_the_shift(curve: list[tuple[float, float]], factor: float) -> None:
    assert bd_rate([(size * factor, quality) for size, quality in curve], curve) == pytest.approx(factor - 1, abs=1e-6)
    halved = [(size / 2, quality) for size, quality in curve]
    assert bd_rate(halved, curve) == pytest.approx(-0.5)


@given(curves(), curves())
def test_turned_round_it_is_the_inverse(one: list[tuple[float, float]], other: list[tuple[float, float]]) -> None:
    there, back = bd_rate(one, other), bd_rate(other, one)
    assert (there is None) == (back is None)
    if there is not None and back is not None:
        assert (1 + there) * (1 + back) == pytest.approx(1.0, rel=1e-6)


def test_a_point_that_another_beats_changes_nothing() -> None:
    curve, reference = [(100, 0.5), (400, 1.0)], [(200, 0.5), (400, 1.0)]
    assert bd_rate([*curve, (150, 0.4), (500, 1.0)], reference) == bd_rate(curve, reference)


@pytest.mark.parametrize(
    ("curve", "reference"),
    [
        ([(100, 0.5)], [(100, 0.2), (200, 0.9)]),
        ([(100, 0.1), (200, 0.2)], [(100, 0.3), (200, 0.9)]),
        ([], []),
    ],
)
def test_without_a_common_interval_there_is_none(
    curve: list[tuple[float, float]], reference: list[tuple[float, float]]
) -> None:
    assert bd_rate(curve, reference) is None


def test_quality_between_two_points_is_on_their_line_in_log_bytes() -> None:
    curve = [(100.0, 0.2), (400.0, 0.8)]
    assert quality_at(curve, 200.0) == pytest.approx(0.5)
    assert quality_at(curve, 400.0) == pytest.approx(0.8)
    assert quality_at(curve, 99.0) is None
    assert quality_at(curve, 401.0) is None
