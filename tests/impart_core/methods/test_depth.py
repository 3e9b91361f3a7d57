"""How deep a decomposition goes: from what is stored, every usual request gets the codes that the whole would give."""

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from impart_core.base.errors import ConfigError
from impart_core.blocks.request import CompressConfig
from impart_core.codec.parts import Codes
from impart_core.delta.factors import Factors
from impart_core.methods import METHODS
from impart_core.methods.base import Projection
from impart_core.methods.depth import LOWEST_CRS, Depth, depth_of
from tests.impart_core.methods.codes import no_delta, same
from tests.impart_core.methods.requests import DECOMPOSING, encode
from tests.impart_core.methods.spectra import FloatArray, factors_of, leading, spectra
from tests.impart_core.pipeline import config_of

# Mostly small, where ⌊⌋ and rounding to the nearest weigh most; some as large as real projections' smaller sides.
sides = st.one_of(st.integers(2, 60), st.integers(2, 300))
accountings = st.sampled_from(["bytes", "paper"])
higher = st.one_of(st.just(1.0), st.floats(1.0, 1.2), st.floats(1.0, 16.0))  # the ratio, over the depth's


def depth_asked(config: CompressConfig, m: int, n: int) -> Depth | None:
    """Return how deep a request needs a projection decomposed."""
    return depth_of(config.projections, m, n, config.factors_for)


@st.composite
def usual_requests(draw: st.DrawFn, lowest_cr: float) -> CompressConfig:
    """Draw a request of CR at least `lowest_cr` that takes no more triplets than ImPart at β 0.6 and C 1."""
    settings_: dict[str, Any] = {"accounting": draw(accountings), "seed": draw(st.integers(0, 3))}
    cr = lowest_cr * draw(higher)
    if draw(st.integers(0, 3)) == 0:
        return config_of(cr, method="lowrank", **settings_)
    beta = draw(st.one_of(st.just(0.6), st.floats(0.6, 0.65), st.floats(0.6, 0.95)))
    c = draw(st.sampled_from([0, 0.5, 1.0]))
    assume(2 * cr * (1 - beta) >= 1)
    rescale = draw(st.booleans())
    return config_of(cr, options={"beta": beta, "c": c, "rescale": rescale}, **settings_)


@st.composite
def quantised_requests(draw: st.DrawFn) -> CompressConfig:
    """Draw a request of few bits that shares a depth."""
    method = draw(st.sampled_from(["impart-qt", "delta-come"]))
    options: dict[str, Any] = {
        "solver": "nearest",
        "ladder": draw(st.sampled_from(["8x2,3x32,2", "16", "4x3,2x5,3", "2"])),
        "lossless": draw(st.booleans()),
        "fill": draw(st.booleans()),
        "group_size": draw(st.sampled_from([1, 16, 128, 60000])),
    }
    if method == "impart-qt":
        options |= {"beta": draw(st.sampled_from([0.6, 0.65, 0.9])), "c": draw(st.sampled_from([0, 0.5, 1.0]))}
    one = config_of(1, method=method, options=options)
    usual = METHODS.get(method).usual_cr(one)
    assert usual is not None
    cr = max(1.0, draw(st.sampled_from(LOWEST_CRS)) / usual) * draw(higher)
    return config_of(cr, method=method, options=options, accounting=draw(accountings), seed=draw(st.integers(0, 3)))


@st.composite
def requests_for_a_ratio(draw: st.DrawFn) -> CompressConfig:
    """Draw a request that says itself for which ratio its factors are."""
    lowest = draw(st.floats(1.25, 64))  # β 0.6 needs a CR of 1.25
    return draw(usual_requests(lowest)).model_copy(update={"factors_for": lowest})


def encoded(factors: Factors, config: CompressConfig) -> Codes:
    m, n = factors.u.shape[1], factors.v.shape[1]
    return encode(Projection("w", (m, n), no_delta, lambda: factors), config)


REQUESTS = {
    **{f"from {lowest:g} on": usual_requests(lowest) for lowest in LOWEST_CRS},
    "of few bits": quantised_requests(),
    "for a ratio": requests_for_a_ratio(),
}


@pytest.mark.parametrize("kind", REQUESTS)
@given(sigma=spectra(sides), longer=st.integers(0, 300), wide=st.booleans(), data=st.data())
@settings(max_examples=200, deadline=None)
def test_every_usual_request_gets_the_same_codes_from_factors_as_deep_as_are_stored(
    kind: str, sigma: FloatArray, longer: int, wide: bool, data: st.DataObject
) -> None:
    config, r = data.draw(REQUESTS[kind]), len(sigma)
    shape = (r, r + longer) if wide else (r + longer, r)
    assume(METHODS.get(config.method).highest_cr(*shape, config) >= config.cr)
    depth, usual = depth_asked(config, *shape), METHODS.get(config.method).usual_cr(config)
    assert depth is not None
    assert usual is not None
    # At 2 where 4 does not serve, as factors of more are larger.
    assert depth == Depth(config.factors_for or (4.0 if usual >= 4 else 2.0))
    needed = depth.needed(*shape)
    assert needed is not None
    whole, count = factors_of(sigma, *shape), needed(sigma)
    assert count <= depth.most(*shape) <= min(shape)
    assert same(encoded(leading(whole, count), config), encoded(whole, config))


@given(m=st.integers(2, 400), n=st.integers(2, 400), cr=st.floats(1, 64), accounting=accountings)
@settings(max_examples=200, deadline=None)
def test_lowrank_is_served_on_a_flat_spectrum_too_where_impart_keeps_the_fewest(
    m: int, n: int, cr: float, accounting: str
) -> None:
    needed = Depth(cr).needed(m, n)
    assert needed is not None
    kept = METHODS.get("lowrank").needed_rank(m, n, config_of(cr, method="lowrank", accounting=accounting))
    assert kept is not None
    assert needed(np.ones(min(m, n))) >= kept


def test_a_spectrum_rounded_to_float32_asks_for_no_more_than_it_was_decomposed_for() -> None:
    # Decompositions count by float64 singular values, and methods by what is stored of them.
    config = config_of(4.0)
    needed = Depth(4.0).needed(200, 200)
    assert needed is not None
    for power in np.linspace(0.2, 1.2, 60):
        exact = np.arange(1, 201) ** -power
        factors = factors_of(exact, 200, 200)
        assert same(encoded(leading(factors, needed(exact)), config), encoded(factors, config))


@pytest.mark.parametrize(("shape", "most"), [((4096, 4096), 1639), ((4096, 11008), 2389), ((1024, 4096), 656)])
def test_whatever_the_spectrum_no_more_is_stored_than_pre_pruning_leaves(shape: tuple[int, int], most: int) -> None:
    # ⌊0.4·2mn/(m+n)⌋ pairs and one, of min(m, n).
    assert Depth(4.0).most(*shape) == most
    needed, sides_ = Depth(4.0).needed(*shape), min(shape)
    assert needed is not None
    flat, falling, steep = (needed(10.0 ** (-slope * np.arange(sides_) / sides_)) for slope in (0, 2, 5))
    assert flat < falling < steep <= most
    assert Depth(None).most(*shape) == sides_


def test_nothing_below_the_deltas_rank_is_stored() -> None:
    needed = Depth(4.0).needed(64, 64)
    assert needed is not None
    assert needed(np.where(np.arange(64) < 3, 1.0, 1e-9)) == 3
    assert needed(np.array([1e-30])) == 1


UNUSUAL: list[dict[str, Any]] = [
    {"options": {"beta": 0.59}},
    {"options": {"c": 1.01}},
    {"options": {"allocation": "uniform"}},
    {"options": {"preprune": False}},
    {"options": {"preprune": False, "beta": 0.8}},
]
USUAL: list[dict[str, Any]] = [
    {},
    {"accounting": "paper"},
    {"seed": 9},
    {"options": {"beta": 0.8, "c": 0.5}},
    {"options": {"rescale": False}},
]
# At 2 bits eight times the entries, of which the entropy coder makes 1/0.7 more: CR 64 is 5.6 at 16 bits.
QUANTIZED: list[tuple[float, dict[str, Any], float | None]] = [
    (64, {}, 4.0),
    (45, {}, 2.0),
    (22, {}, None),
    (32, {"lossless": False}, 4.0),
    (31.9, {"fill": False}, 2.0),
    (16, {"lossless": False}, 2.0),
    (15.9, {"lossless": False}, None),
    (16, {"lossless": False, "ladder": "8x2,4"}, 4.0),
    (4, {"lossless": False, "ladder": "16"}, 4.0),
]
DEPTHS: list[tuple[dict[str, Any], float | None]] = [
    *(({"method": method, "cr": cr}, 4.0) for method in ("impart", "lowrank") for cr in (64, 8, 4)),
    *(({"method": method, "cr": cr}, 2.0) for method in ("impart", "lowrank") for cr in (3.99, 2)),
    *(({"method": method, "cr": 1.99}, None) for method in ("impart", "lowrank")),
    *(({"method": method, "cr": 8, "factors_for": cr}, cr) for method in ("impart", "lowrank") for cr in (1.25, 2, 8)),
    *(({"cr": 4, **settings_}, 4.0) for settings_ in USUAL),
    *(({"cr": 8, **settings_}, None) for settings_ in UNUSUAL),
    *(({"method": "impart-qt", "cr": 64, **settings_}, None) for settings_ in UNUSUAL),
    *(
        ({"method": method, "cr": cr, "options": options}, lowest)
        for method in ("impart-qt", "delta-come")
        for cr, options, lowest in QUANTIZED
    ),
]


@pytest.mark.parametrize(("settings_", "lowest"), DEPTHS, ids=str)
def test_usual_requests_share_two_depths_unless_they_name_one_and_others_ask_for_the_whole(
    settings_: dict[str, Any], lowest: float | None
) -> None:
    depth = depth_asked(config_of(**settings_), 64, 96)
    assert depth == Depth(lowest)
    if lowest is None:
        assert depth.needed(64, 96) is None
        assert depth.most(64, 96) == 64


def test_the_two_depths_keep_as_many_of_a_flat_spectrum_as_fit_whole_and_one() -> None:
    flat, depths = np.ones(4096), [Depth(lowest).needed(4096, 4096) for lowest in LOWEST_CRS]
    assert [needed(flat) for needed in depths if needed] == [513, 1025]  # 4096/(2·CR)


@pytest.mark.parametrize("method", sorted({*METHODS} - {*DECOMPOSING}))
def test_a_method_that_works_on_the_delta_itself_needs_no_depth(method: str) -> None:
    assert depth_asked(config_of(8, method=method), 32, 48) is None
    assert depth_asked(config_of(8, method=method, factors_for=64), 32, 48) is None


def test_factors_for_a_higher_ratio_than_the_requests_own_are_refused_with_the_highest_that_serves() -> None:
    with pytest.raises(ConfigError) as caught:
        depth_asked(config_of(32, factors_for=64), 32, 48)
    assert str(caught.value) == (
        "factors_for 64 keeps too few singular triplets for CR 32. Lower it to at most 32, or leave it out."
    )


@pytest.mark.parametrize("settings_", UNUSUAL, ids=str)
def test_factors_for_a_ratio_are_refused_with_settings_that_need_them_all(settings_: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"factors_for 8 cannot serve .* of 'impart'.*Leave factors_for out, or use"):
        depth_asked(config_of(8, factors_for=8, **settings_), 32, 48)
