"""ImPart: the reference's allocation, exact budgets, and what its options do."""

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from impart_core.base.errors import ConfigError
from impart_core.blocks.request import CompressConfig
from impart_core.codec.mask import keep_probability, mask_from_words, mask_key, mask_words
from impart_core.codec.parts import Codes, nbytes
from impart_core.delta.svd import decompose
from impart_core.methods.base import METHODS, Projection
from impart_core.methods.impart import Impart, allocate
from tests.impart_core.methods.codes import keep_of, same
from tests.impart_core.methods.requests import encode, where_known
from tests.impart_core.pipeline import config_of
from tests.support import VECTORS, decaying_delta

pytestmark = pytest.mark.usefixtures("one_thread")

METHOD = Impart()
CASES: list[dict[str, Any]] = json.loads((VECTORS / "sparsity.json").read_text())["sparsity_ratios"]


def spectrum(kind: str, n: int) -> npt.NDArray[np.float64]:
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


def test_codes_are_exactly_sigma_keep_and_the_kept_entries_of_u_and_v() -> None:
    m, n, delta, config = 24, 40, decaying_delta(24, 40), config_of(4, seed=9)
    codes = METHOD.encode(Projection.of(delta, "layer.w"), config)
    factors, pairs = decompose(delta, "layer.w"), len(codes["sigma"])
    assert {part: code.dtype for part, code in codes.items()} == {
        "sigma": torch.float32,
        "keep": torch.uint16,
        "u": torch.float16,
        "v": torch.float16,
    }
    assert torch.equal(codes["sigma"], factors.sigma[:pairs])
    for role, vectors, rows in (("u", factors.u, m), ("v", factors.v, n)):
        words = mask_words(mask_key(9, "layer.w", role), rows, pairs)
        mask = torch.from_numpy(mask_from_words(words, codes["keep"].numpy()))
        assert torch.equal(codes[role], vectors[:pairs][mask].half())
    kept = codes["u"].numel() + codes["v"].numel()
    assert nbytes(codes) == 6 * pairs + 2 * kept


def test_the_first_pair_is_kept_whole_and_less_of_every_following_one() -> None:
    keep = METHOD.encode(Projection.of(decaying_delta(48, 48), "w"), config_of(8))["keep"].numpy()
    assert keep[0] == 65535
    assert bool((np.diff(keep.astype(int)) < 0).all())


def test_exponent_zero_drops_no_entry_and_is_the_truncated_decomposition() -> None:
    delta = decaying_delta(48, 48)
    codes = METHOD.encode(Projection.of(delta, "w"), config_of(4, options={"c": 0.0}))
    pairs = len(codes["sigma"])
    assert codes["keep"].tolist() == [65535] * pairs
    assert codes["u"].numel() == codes["v"].numel() == 48 * pairs
    u, sigma, vh = np.linalg.svd(delta.double().numpy())
    expected = (u[:, :pairs] * sigma[:pairs]) @ vh[:pairs]
    # u and v are stored in float16: 2⁻¹¹ relative in each, so about 2⁻¹⁰ of every pair's norm.
    error = np.linalg.norm(METHOD.decode(codes, "w", (48, 48), 0).numpy() - expected)
    assert error <= 2**-10 * np.linalg.norm(sigma[:pairs])


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


@pytest.mark.parametrize("accounting", ["bytes", "paper"])
def test_without_rescaling_kept_entries_are_decoded_as_they_are(accounting: str) -> None:
    m, n, delta = 24, 32, decaying_delta(24, 32)
    settings_: dict[str, Any] = {"accounting": accounting, "seed": 3}
    usual = METHOD.encode(Projection.of(delta, "w"), config_of(4, **settings_))
    codes = METHOD.encode(Projection.of(delta, "w"), config_of(4, **settings_, options={"rescale": False}))
    assert all(torch.equal(codes[part], usual[part]) for part in ("keep", "u", "v"))
    factors, pairs = decompose(delta, "w"), len(codes["sigma"])
    kept = [
        np.where(
            mask_from_words(mask_words(mask_key(3, "w", role), rows, pairs), codes["keep"].numpy()),
            vectors[:pairs].half().double().numpy(),
            0.0,
        )
        for role, vectors, rows in (("u", factors.u, m), ("v", factors.v, n))
    ]
    expected = (kept[0] * factors.sigma[:pairs, None].double().numpy()).T @ kept[1]
    # Four float32 roundings of each factor, and a sum over the pairs.
    np.testing.assert_allclose(
        METHOD.decode(codes, "w", (m, n), 3).numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )


# What ImPart-Qt has in common with it.

BOTH = pytest.mark.parametrize(("method", "cr", "step"), [("impart", 6, 1 / 65536), ("impart-qt", 24, 1 / 256)])


def encoded(method: str, cr: float, accounting: str = "bytes", **options: Any) -> Codes:
    options |= where_known(method, solver="nearest")
    return encode(Projection.of(decaying_delta(128, 96), "w"), request_of(method, cr, accounting, **options))


def request_of(method: str, cr: float, accounting: str = "bytes", **options: Any) -> CompressConfig:
    return config_of(cr, method=method, accounting=accounting, options=options)


@BOTH
@pytest.mark.parametrize("c", [0.5, 1.0, 2.0])
def test_one_gamma_explains_every_keep_probability(method: str, cr: float, step: float, c: float) -> None:
    keep = keep_of(encoded(method, cr, c=c))
    sigma = decompose(decaying_delta(128, 96), "w").sigma[: len(keep)].double().numpy()
    unimportance = 1 - (sigma[1:] / sigma[0]) ** c
    gamma = (1 - keep_probability(keep)[1:]) / unimportance
    # A keep probability is stored to half a step.
    assert (gamma - 0.5 * step / unimportance).max() <= (gamma + 0.5 * step / unimportance).min()
    assert keep[0] == 65535
    assert len(gamma) > 2
    assert 0 < gamma[-1] < 1


@BOTH
@pytest.mark.parametrize("accounting", ["bytes", "paper"])
def test_without_pre_pruning_beta_is_zero_whatever_it_says(
    method: str, cr: float, step: float, accounting: str
) -> None:
    without = encoded(method, cr, accounting, preprune=False, beta=0.9)
    assert same(without, encoded(method, cr, accounting, beta=0.0))
    assert not same(without, encoded(method, cr, accounting, beta=0.9))
    config = request_of(method, 4, accounting, preprune=False, beta=0.9)
    METHODS.get(method).check(config, 64)  # with pre-pruning, ImPart refuses this β and this ratio
    assert METHODS.get(method).needed_rank(128, 96, config) == 96
    highest = METHODS.get(method).highest_cr(128, 96, config)
    assert highest == METHODS.get(method).highest_cr(128, 96, request_of(method, 4, accounting, beta=0.0))


@BOTH
@pytest.mark.parametrize("accounting", ["bytes", "paper"])
def test_a_uniform_allocation_keeps_the_same_share_of_every_candidate(
    method: str, cr: float, step: float, accounting: str
) -> None:
    keep = keep_of(encoded(method, cr, accounting, allocation="uniform"))
    # ⌊2·128·96·0.4/(128 + 96)⌋; in steps of 1/256 the paper's count may be met with fewer pairs.
    assert len(keep) == 43 or (method == "impart-qt" and accounting == "paper" and 40 <= len(keep) < 43)
    assert METHODS.get(method).needed_rank(128, 96, request_of(method, cr, accounting)) == 43
    assert len(set(keep)) == 1
    if (method, accounting) == ("impart", "paper"):
        # d = mn/(CR·r·(m+n)) of U and V, all of it in the candidates that pre-pruning leaves.
        expected = 128 * 96 / (cr * 96 * 224) / (2 * 128 * 96 * 0.4 / (96 * 224))
        assert keep_probability(keep)[0] == pytest.approx(expected, abs=0.5 / 65536)
