"""ImPart: the reference's allocation, exact budgets, and what its options do, of ImPart-Qt too."""

import json
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from impart_core.base.errors import ConfigError
from impart_core.codec.mask import UInt16Array, keep_probability
from impart_core.codec.parts import Codes, nbytes
from impart_core.delta.budget import budget_bytes, pair_bytes
from impart_core.delta.svd import decompose, numerical_rank
from impart_core.methods.allocation import allocate
from impart_core.methods.base import METHODS, Projection
from impart_core.methods.impart import Impart, ImpartOptions
from tests.impart_core.delta.spectra import matrix_of
from tests.impart_core.methods.codes import keep_of, no_delta, same, vector_masks
from tests.impart_core.methods.requests import encode, request_of
from tests.impart_core.methods.spectra import FloatArray, factors_of, spectra
from tests.impart_core.pipeline import config_of
from tests.support import VECTORS, decaying_delta

METHOD = Impart()
CASES: list[dict[str, Any]] = json.loads((VECTORS / "sparsity.json").read_text())["sparsity_ratios"]


def spectrum(kind: str, n: int) -> FloatArray:
    i = np.arange(n, dtype=np.float64)
    return {"power": (i + 1) ** -0.6, "flat": 1 - 0.5 * i / n, "exp": np.exp(-4 * i / n)}[kind]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['spectrum']}-{c['n']}-a{c['alpha']}-b{c['beta']}-C{c['C']}")
def test_drop_probabilities_are_the_references(case: dict[str, Any]) -> None:
    importance = spectrum(case["spectrum"], case["n"]) ** case["C"]
    drop = allocate(importance, case["n"], case["alpha"], case["beta"])
    assert len(drop) == len(case["p"])
    # Both sides compute in float64 and round a handful of times.
    np.testing.assert_allclose(drop, case["p"], rtol=0, atol=1e-14)


def test_all_cases_of_the_reference_are_here() -> None:
    assert len(CASES) == 36


@given(
    n=st.integers(2, 300),
    alpha=st.floats(0.5, 0.999),
    beta=st.floats(0, 0.95),
    c=st.floats(0, 3),
    power=st.floats(0, 2),
)
@settings(deadline=None)
def test_an_allocation_keeps_no_more_entries_than_asked_and_could_not_keep_a_pair_more(
    n: int, alpha: float, beta: float, c: float, power: float
) -> None:
    beta = min(beta, alpha)
    importance = np.arange(1, n + 1, dtype=np.float64) ** (-power * c)
    drop = allocate(importance, n, alpha, beta)
    candidates, gamma = int(n * (1 - beta) + 1e-9), (alpha - beta) / (1 - beta)
    room = candidates * (1 - gamma)
    assert (1 - drop).sum() <= room * (1 + 1e-9)
    assert bool((np.diff(drop) >= 0).all())
    if len(drop) < candidates:
        following = (1 - importance[len(drop)]) * gamma
        assert (1 - drop).sum() + 1 - following > room * (1 - 1e-9)


def test_paper_accounting_takes_the_papers_probabilities_to_the_stored_step() -> None:
    delta = decaying_delta(64, 64)
    codes = METHOD.encode(Projection.of(delta, "w"), config_of(8, accounting="paper", options={"beta": 0.6}))
    sigma = decompose(delta, "w").sigma.double().numpy()
    expected = 1 - allocate(sigma / sigma[0], 64, 1 - 1 / 16, 0.6)
    np.testing.assert_allclose(keep_probability(codes["keep"].numpy()), expected, rtol=0, atol=0.5 / 65536)


def suggested(message: str) -> tuple[float, float]:
    beta = message.split("Lower beta to at most ")[1].split(",")[0]
    return float(beta), float(message.split("raise CR to at least ")[1].rstrip("."))


@given(cr=st.floats(1, 50), beta=st.floats(0, 0.999))
@example(cr=5.0, beta=0.95)
@settings(deadline=None)
def test_a_beta_that_contradicts_the_ratio_is_refused_and_either_suggestion_works(cr: float, beta: float) -> None:
    config = config_of(cr, options={"beta": beta})
    try:
        METHOD.check(config, 64)
    except ConfigError as error:
        assert 2 * cr * (1 - beta) < 1
        lower, higher = suggested(str(error))
        METHOD.check(config_of(cr, options={"beta": lower}), 64)
        METHOD.check(config_of(higher, options={"beta": beta}), 64)
    else:
        assert 2 * cr * (1 - beta) >= 1 - 1e-12


def test_a_contradiction_says_which_way_to_move_each_knob() -> None:
    with pytest.raises(ConfigError) as caught:
        METHOD.check(config_of(2, options={"beta": 0.85}), 64)
    assert str(caught.value) == (
        "beta 0.85 and CR 2 cannot go together: pre-pruning leaves 15.0% of the vector pairs, but this ratio has room "
        "for 25.0%. Lower beta to at most 0.75, or raise CR to at least 3.334."
    )


# What ImPart-Qt has in common with it.

BOTH = pytest.mark.parametrize(("method", "cr"), [("impart", 6), ("impart-qt", 24)])
accountings = pytest.mark.parametrize("accounting", ["bytes", "paper"])


def encoded(method: str, cr: float, accounting: str = "bytes", **options: Any) -> Codes:
    request = request_of(method, cr, accounting=accounting, options=options)
    return encode(Projection.of(decaying_delta(128, 96), "w"), request)


@BOTH
@pytest.mark.parametrize("c", [0.5, 1.0, 2.0])
def test_one_gamma_explains_every_keep_probability(method: str, cr: float, c: float) -> None:
    keep, step = keep_of(encoded(method, cr, c=c, beta=0.6)), 1 / (256 if method == "impart-qt" else 65536)
    sigma = decompose(decaying_delta(128, 96), "w").sigma[: len(keep)].double().numpy()
    unimportance = 1 - (sigma[1:] / sigma[0]) ** c
    gamma = (1 - keep_probability(keep)[1:]) / unimportance
    # A keep probability is stored to half a step.
    assert (gamma - 0.5 * step / unimportance).max() <= (gamma + 0.5 * step / unimportance).min()
    assert keep[0] == 65535
    assert len(gamma) > 2
    assert 0 < gamma[-1] < 1


@BOTH
def test_exponent_zero_drops_no_entry(method: str, cr: float) -> None:
    keep = keep_of(encoded(method, cr, c=0.0))
    assert keep.tolist() == [65535] * len(keep)
    assert len(keep) > 1


@BOTH
@accountings
def test_without_pre_pruning_beta_is_zero_whatever_it_says(method: str, cr: float, accounting: str) -> None:
    without = encoded(method, cr, accounting, preprune=False, beta=0.9)
    assert same(without, encoded(method, cr, accounting, beta=0.0))
    assert not same(without, encoded(method, cr, accounting, beta=0.9))
    config = request_of(method, 4, accounting=accounting, options={"preprune": False, "beta": 0.9})
    METHODS.get(method).check(config, 64)  # with pre-pruning, ImPart refuses this β and this ratio
    assert METHODS.get(method).needed_rank(128, 96, config) == 96
    with_zero = request_of(method, 4, accounting=accounting, options={"beta": 0.0})
    assert METHODS.get(method).highest_cr(128, 96, config) == METHODS.get(method).highest_cr(128, 96, with_zero)


@BOTH
@accountings
def test_a_uniform_allocation_keeps_the_same_share_of_every_candidate(method: str, cr: float, accounting: str) -> None:
    keep = keep_of(encoded(method, cr, accounting, allocation="uniform", beta=0.6))
    # ⌊2·128·96·0.4/(128 + 96)⌋; in steps of 1/256 the paper's count may be met with fewer pairs.
    assert len(keep) == 43 or (method == "impart-qt" and accounting == "paper" and 40 <= len(keep) < 43)
    request = request_of(method, cr, accounting=accounting, options={"beta": 0.6})
    assert METHODS.get(method).needed_rank(128, 96, request) == 43
    assert len(set(keep)) == 1
    if (method, accounting) == ("impart", "paper"):
        # d = mn/(CR·r·(m+n)) of U and V, all of it in the candidates that pre-pruning leaves.
        expected = 128 * 96 / (cr * 96 * 224) / (2 * 128 * 96 * 0.4 / (96 * 224))
        assert keep_probability(keep)[0] == pytest.approx(expected, abs=0.5 / 65536)


# How many pairs are taken so that no room is left, and where room is better left.


def stored_bytes(keep: UInt16Array, m: int, n: int) -> int:
    """Count the bytes that these keep codes of a matrix named `w` take, from the masks' words themselves."""
    return 2 * sum(int(mask.sum()) for mask in vector_masks({"keep": torch.from_numpy(keep)}, (m, n))) + 6 * len(keep)


def projection_of(sigma: FloatArray, m: int, n: int) -> Projection:
    return Projection("w", (m, n), no_delta, lambda: factors_of(sigma, m, n))


@given(
    sigma=spectra(st.integers(2, 40)),
    longer=st.integers(0, 40),
    cr=st.floats(1, 12),
    beta=st.floats(0, 0.9),
    c=st.floats(0, 2),
    allocation=st.sampled_from(["importance", "uniform"]),
)
@settings(max_examples=150, deadline=None)
def test_no_bytes_are_left_that_could_hold_more(
    sigma: FloatArray, longer: int, cr: float, beta: float, c: float, allocation: str
) -> None:
    m, n = len(sigma), len(sigma) + longer
    config = config_of(cr, options={"beta": beta, "c": c, "allocation": allocation})
    if cr > METHOD.highest_cr(m, n, config) or 2 * cr * (1 - beta) < 1:
        return
    keep = METHOD.encode(projection_of(sigma, m, n), config)["keep"].numpy()
    budget = budget_bytes(m, n, cr)
    assert stored_bytes(keep, m, n) <= budget
    # γ is found to far less than the step of a code, so that one step more of each would not fit.
    denser = np.minimum(keep.astype(int) + 1, 65535).astype(np.uint16)
    candidates = min(METHOD.needed_rank(m, n, config), numerical_rank(sigma, m, n))
    if stored_bytes(denser, m, n) > budget or len(keep) == candidates:
        return
    assert set(keep) == {65535}
    # What γ = 1 leaves of the next pair.
    lowest = (sigma[len(keep)] / sigma[0]) ** c if allocation == "importance" else 0.0
    one_more = np.append(keep, np.rint(max(lowest * 65536, 1)) - 1).astype(np.uint16)
    assert stored_bytes(one_more, m, n) > budget


def test_one_pair_more_than_algorithm_1_keeps_uses_the_room_that_whole_pairs_leave() -> None:
    side, cr, sigma = 24, 6, spectrum("exp", 24)
    assert len(allocate(sigma, side, 1 - 1 / (2 * cr), 0.6)) == 1
    assert budget_bytes(side, side, cr) - pair_bytes(side, side) == 90
    codes = METHOD.encode(projection_of(sigma, side, side), config_of(cr, options={"beta": 0.6}))
    assert len(codes["sigma"]) == 2
    assert budget_bytes(side, side, cr) - 4 <= nbytes(codes) <= budget_bytes(side, side, cr)


def test_a_pair_that_would_be_thinned_below_its_importance_is_not_taken_to_fill_the_room() -> None:
    # At γ = 1 each pair keeps the share s of its entries; below that, rescaling adds more error than the pair is worth.
    m, n, cr, sigma = 128, 256, 32, spectrum("exp", 128)
    assert METHOD.encode(projection_of(sigma, m, n), config_of(cr))["keep"].tolist() == [65535] * 2
    assert 2 * pair_bytes(m, n) < budget_bytes(m, n, cr) < sigma[:3].sum() * 2 * (m + n)


@pytest.mark.parametrize(
    ("cr", "accounting", "beta"),
    [
        (1, "bytes", 0.5),
        (2, "bytes", 0.75),
        (4, "bytes", 0.875),
        (8, "bytes", 0.9),
        (16, "bytes", 0.8),
        (32, "bytes", 0.6),
        (64, "bytes", 0.6),
        (4, "paper", 0.6),
    ],
)
def test_beta_is_by_default_the_papers_at_its_ratio_and_leaves_fewer_pairs_down_to_whole_ones_below(
    cr: float, accounting: Literal["bytes", "paper"], beta: float
) -> None:
    assert ImpartOptions().preprune_ratio(cr, accounting) == pytest.approx(beta, abs=1e-12)
    assert ImpartOptions(beta=0.6).preprune_ratio(cr, accounting) == 0.6
    assert ImpartOptions(preprune=False).preprune_ratio(cr, accounting) == 0.0
    METHOD.check(config_of(cr, accounting=accounting), 64)


@pytest.mark.parametrize("power", [0.3, 0.9])
@pytest.mark.parametrize("shape", [(256, 256), (96, 400)])
def test_more_bytes_lower_the_error_where_whole_pairs_fit(power: float, shape: tuple[int, int]) -> None:
    sigma = np.arange(1, min(shape) + 1) ** -power
    delta = matrix_of(sigma, *shape)
    errors = []
    for cr in (1.5, 2, 3, 4):
        codes = METHOD.encode(Projection.of(delta, "w"), config_of(cr))
        errors.append(float(torch.dist(METHOD.decode(codes, "w", shape, 0), delta) / delta.norm()))
    assert errors == sorted(errors)
    assert errors[-1] < 1.0


def test_under_the_papers_count_no_mask_takes_more_bytes_than_are_expected() -> None:
    """Both pairs of a 2×5 matrix at CR 1: of 14 entries the paper counts 10, so 2·10 + 2·6 bytes; masks keep others."""
    delta = Projection.of(torch.eye(2, 5), "w")
    coding = config_of(1, accounting="paper", options={"beta": 0.0, "allocation": "uniform"})
    seeds = [coding.model_copy(update={"seed": seed}) for seed in range(300)]
    taken = {nbytes(METHOD.encode(delta, each)) for each in seeds}
    assert {30, 32, 34, 36} <= taken
    assert max(taken) <= METHOD.expected_bytes(2, 5, coding) == 2 * 14 + 2 * 6  # all of them
