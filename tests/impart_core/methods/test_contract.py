"""What every method promises: its bytes, its highest ratio, and the same codes for the same request."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from impart_core.base.errors import ConfigError, InfeasibleBudgetError, TensorValueError
from impart_core.blocks.request import CompressConfig
from impart_core.checkpoint.index import Checkpoint
from impart_core.codec.parts import nbytes
from impart_core.codec.positions import position_bytes
from impart_core.delta.budget import budget_bytes, pair_bytes
from impart_core.delta.factors import Factors
from impart_core.delta.svd import decompose
from impart_core.engine.plan import check_request
from impart_core.methods import METHODS, QUANTIZING
from impart_core.methods.base import Projection
from tests.impart_core.methods.codes import calibrated, no_delta, no_factors, same
from tests.impart_core.methods.requests import (
    DECOMPOSING,
    KINDS,
    VARIANTS,
    WITHOUT_MASKS,
    any_requests,
    decode,
    delta_of,
    encode,
    is_feasible,
    one_entry,
    request_of,
    requests,
    where_known,
)
from tests.impart_core.methods.spectra import leading
from tests.support import decaying_delta

Opened = tuple[Checkpoint, Checkpoint]
methods = pytest.mark.parametrize("method", METHODS)
accountings = pytest.mark.parametrize("accounting", ["bytes", "paper"])
sides = st.integers(1, 40)


@methods
def test_a_method_and_each_of_its_options_is_described_in_a_few_words(method: str) -> None:
    described = METHODS.get(method)
    fields = described.options_model.model_fields.values()
    assert all(text and "\n" not in text for text in (described.summary, *(field.description for field in fields)))
    assert described.version >= 1
    assert not described.options_model().model_fields_set  # every option has a default


# Dtypes of the parts of codes, by method; what is quantised is in streams, coded to be smaller or not.
STREAMS = {"layout": torch.uint16, "scales": torch.float16, "zeros": torch.uint8, "codes": torch.uint8}
LOSSLESS = {"forms": torch.uint8, "lengths": torch.uint32, "packed": torch.uint32}
PARTS: dict[str, dict[str, torch.dtype]] = {
    "bitdelta": {"scales": torch.float32, "signs": torch.uint8, "keep": torch.uint16},
    "dare": {"keep": torch.uint16, "values": torch.float16, "exponent": torch.int8},
    "dare-qt": {"keep": torch.uint16, "exponent": torch.int8},
    "delta-come": {"sigma": torch.bfloat16},
    "ecsq": {"symbols": torch.uint8},
    "impart": {"sigma": torch.float32, "keep": torch.uint16, "u": torch.float16, "v": torch.float16},
    "impart-qt": {"sigma": torch.bfloat16, "keep_shared_v": torch.uint8},
    "lowrank": {"sigma": torch.float32, "u": torch.float16, "v": torch.float16},
    "magnitude": {
        **{"values": torch.float16, "exponent": torch.int8},
        **{"width": torch.uint8, "quotients": torch.uint8, "remainders": torch.uint8},
    },
}


@pytest.mark.parametrize(("method", "options"), VARIANTS, ids=str)
@accountings
def test_codes_have_the_parts_of_the_format(method: str, accounting: str, options: dict[str, bool]) -> None:
    request = request_of(method, 8, accounting=accounting, options=options)
    codes = encode(Projection.of(decaying_delta(48, 64), "w"), request)
    streams = {**STREAMS, **(LOSSLESS if options["lossless"] else {})} if method in QUANTIZING else {}
    assert {part: code.dtype for part, code in codes.items()} == PARTS[method] | streams
    assert codes.keys() <= set(METHODS.get(method).parts)


# Bytes.


@methods
@given(m=sides, n=sides, calibrate=st.booleans(), data=st.data())
@settings(max_examples=150, deadline=None)
def test_every_feasible_request_is_within_its_bytes_and_decodes(
    method: str, m: int, n: int, calibrate: bool, data: st.DataObject
) -> None:
    request = data.draw(requests(method, m, n))
    delta = delta_of(data.draw(st.sampled_from(KINDS)), m, n, request.seed)
    projection = calibrated(delta) if calibrate else Projection.of(delta, "w")
    codes = encode(projection, request)
    assert request.accounting == "paper" or nbytes(codes) <= budget_bytes(m, n, request.cr)
    assert nbytes(codes) <= METHODS.get(method).expected_bytes(m, n, request)
    assert {code.device.type for code in codes.values()} == {"cpu"}
    decoded = decode(codes, projection, request)
    assert (decoded.shape, decoded.dtype) == ((m, n), torch.float32)
    assert bool(torch.isfinite(decoded).all())


@methods
@given(m=sides, n=sides, data=st.data())
@settings(max_examples=50, deadline=None)
def test_at_the_highest_ratio_something_is_kept_and_at_any_higher_one_nothing_or_it_does_not_fit(
    method: str, m: int, n: int, data: st.DataObject
) -> None:
    # What an entropy coder saves cannot be counted on, nor where all pairs are thinned alike what a mask keeps.
    options = where_known(method, lossless=False, allocation="importance")
    request = data.draw(requests(method, m, n, accounting="bytes", options=options))
    highest = METHODS.get(method).highest_cr(m, n, request)
    at, beyond = (request.model_copy(update={"cr": cr}) for cr in (highest, float(np.nextafter(highest, np.inf))))
    assert budget_bytes(m, n, beyond.cr) < budget_bytes(m, n, highest)
    ones = Projection.of(torch.ones(m, n), "w")
    several = [at.model_copy(update={"seed": seed}) for seed in range(1 if method in WITHOUT_MASKS else 20)]
    assert any(bool(decode(encode(ones, each), ones, each).any()) for each in several)
    last = Projection.of(one_entry(m, n, m * n - 1), "w")
    codes = encode(last, beyond)
    assert nbytes(codes) > budget_bytes(m, n, beyond.cr) or not decode(codes, last, beyond).any()


# Bytes of the least that keeps anything, counted out, by method, from the matrix's sides (of at most one group each).
SMALLEST: dict[str, Callable[[int, int], int]] = {
    "bitdelta": lambda m, n: 4 + min(2 + 1, -(-m * n // 8)),  # a scale, and a byte of signs with a keep code, or all
    "dare": lambda m, n: 2 + 1 + 2,  # an exponent
    "dare-qt": lambda m, n: 2 + 1 + 8 + 1 + 2 + 1,  # keep code, exponent, layout, code, scale and zero point
    "delta-come": lambda m, n: 2 + 8 + m + n + 2 * (2 + 1),
    # How many tables, a check, an exponent, a coarse table, a scale and signs, of which none is told to be zero.
    "ecsq": lambda m, n: 1 + 1 + 1 + 2 + 1 + int((m + n) * (1 - math.log2(62428 / 65536)) / 8) + 1,
    "impart": lambda m, n: 4 + 2 + 2 * (m + n),
    "impart-qt": lambda m, n: 2 + 1 + 8 + m + n + 2 * (2 + 1),
    "lowrank": lambda m, n: 4 + 2 * (m + n),
    "magnitude": lambda m, n: 2 + 1 + 1 + position_bytes(np.array([m * n - 1])),
}


@methods
@given(m=st.integers(2, 40), n=st.integers(2, 40))
@settings(max_examples=50, deadline=None)
def test_the_highest_ratio_is_that_of_the_fewest_bytes_that_keep_anything(method: str, m: int, n: int) -> None:
    highest = METHODS.get(method).highest_cr(m, n, request_of(method, 1, options=where_known(method, lossless=False)))
    assert budget_bytes(m, n, highest) == SMALLEST[method](m, n)
    assert budget_bytes(m, n, np.nextafter(highest, np.inf)) < SMALLEST[method](m, n)


@pytest.mark.parametrize("method", ["impart", "lowrank", "magnitude"])  # others keep a pair, or entries by chance
@given(m=sides, n=sides, beta=st.sampled_from([0.0, 0.3, 0.6, 0.8]))
@settings(max_examples=60, deadline=None)
def test_under_the_papers_count_the_highest_ratio_keeps_one_pair_or_entry_and_a_higher_one_none(
    method: str, m: int, n: int, beta: float
) -> None:
    settings_ = {"accounting": "paper", "options": where_known(method, beta=beta)}
    highest = METHODS.get(method).highest_cr(m, n, request_of(method, 1, **settings_))
    assume(highest >= 1.1)
    flat = Projection.of(torch.eye(m, n), "w")  # every pair as important as the first
    for cr, expected in ((highest, 1), (highest * 1.001, 0)):
        codes = encode(flat, request_of(method, cr, **settings_))
        assert min(1, len(codes["values" if method == "magnitude" else "sigma"])) == expected


# Bytes of a budget that may be left over, by method, from the matrix's sides and the budget.
LEFT: dict[str, Callable[[int, int, int], float]] = {
    "bitdelta": lambda m, n, budget: 2,
    "dare": lambda m, n, budget: 4,
    "dare-qt": lambda m, n, budget: 0.03 * budget + 4,
    # Whole vectors come one by one, and the next of at most 8 bits did not fit.
    "delta-come": lambda m, n, budget: m + n + 44,
    # Nor is a pair taken that would be thinned below its importance, where there are but two or three.
    "ecsq": lambda m, n, budget: 0.02 * budget + (m + n) / 8,
    "impart": lambda m, n, budget: 16 if budget > 3 * pair_bytes(m, n) else pair_bytes(m, n),
    "impart-qt": lambda m, n, budget: max(0.04 * budget, m + n + 40) + 4,
    "lowrank": lambda m, n, budget: pair_bytes(m, n),
    "magnitude": lambda m, n, budget: 3,
}


@pytest.mark.parametrize(("method", "options"), VARIANTS, ids=str)
@pytest.mark.parametrize("cr", [16, 32, 64, 128])
@pytest.mark.parametrize("shape", [(128, 128), (192, 96), (96, 320), (131, 97), (2, 700), (300, 2)])
def test_at_the_papers_ratios_most_of_the_budget_is_used(
    method: str, options: dict[str, bool], cr: float, shape: tuple[int, int]
) -> None:
    request = request_of(method, cr, options=options)
    if not is_feasible(request, *shape):
        # Of few bytes not even one vector fits, or what describes the streams takes them all.
        assert method in DECOMPOSING or (method == "dare-qt" and budget_bytes(*shape, cr) < 32)
        return
    budget = budget_bytes(*shape, cr)
    found = nbytes(encode(calibrated(decaying_delta(*shape)), request))
    assert budget - LEFT[method](*shape, budget) <= found <= budget


@methods
@accountings
def test_a_lower_ratio_takes_more_bytes_and_comes_closer(method: str, accounting: str) -> None:
    projection, sizes, errors = Projection.of(decaying_delta(128, 128), "w"), [], []
    for cr in (8, 16, 24, 64):
        request = request_of(method, cr, accounting=accounting)
        if is_feasible(request, 128, 128):
            codes = encode(projection, request)
            sizes.append(nbytes(codes))
            errors.append(float(torch.dist(decode(codes, projection, request), projection.delta())))
    assert len(sizes) >= 3
    assert sizes == sorted(sizes, reverse=True)
    if method not in ("impart", "impart-qt"):  # which take more pairs, of which they keep less than of the first
        assert errors == sorted(errors)
        assert errors[0] < 0.95 * errors[-1]


@methods
@accountings
def test_too_high_a_ratio_is_refused_in_a_sentence_that_names_the_highest(
    method: str, accounting: str, opened: Opened
) -> None:
    with pytest.raises(InfeasibleBudgetError) as caught:
        check_request(*opened, request_of(method, 10**7, accounting=accounting))
    message = str(caught.value)
    assert message.startswith("CR 1e+07 is too high to keep anything of 14 of 14 projections; the tightest is")
    assert f"for this model with method '{method}' and these settings is" in message
    highest = float(message.split("settings is ")[1].split(". ")[0].rstrip("."))
    check_request(*opened, request_of(method, highest, accounting=accounting))
    with pytest.raises(InfeasibleBudgetError):
        check_request(*opened, request_of(method, highest + 0.011, accounting=accounting))


# The same request, the same codes.


@methods
@accountings
@pytest.mark.parametrize("calibrate", [True, False])
def test_the_same_request_gives_the_same_codes_each_time_and_a_masks_seed_or_name_others(
    method: str, accounting: str, calibrate: bool
) -> None:
    make = calibrated if calibrate else Projection.of
    cr = 20 if method == "bitdelta" else 6  # below 16 every entry has its sign
    request = request_of(method, cr, accounting=accounting, options=where_known(method, preprune=False))
    delta = decaying_delta(48, 64)
    before, first = delta.clone(), encode(make(delta, "w"), request)
    assert torch.equal(delta, before)  # what is given is left alone
    assert same(encode(make(before, "w"), request), first)
    for other in (encode(make(delta, "w"), request.model_copy(update={"seed": 1})), encode(make(delta, "v"), request)):
        assert same(other, first) == (method in WITHOUT_MASKS)


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@methods
@pytest.mark.parametrize("device", DEVICES)
def test_how_the_delta_lies_in_memory_and_at_what_precision_plays_no_part(method: str, device: str) -> None:
    delta, request = decaying_delta(48, 64).bfloat16(), request_of(method, 8, options=where_known(method, bits=8))
    expected = encode(Projection.of(delta.float(), "w"), request)
    turned = delta.T.contiguous().T.to(device)
    assert not turned.is_contiguous()
    codes = encode(Projection.of(turned, "w"), request)
    assert {code.device.type for code in codes.values()} == {"cpu"}
    assert same(codes, expected) or device != "cpu"  # another device may round another way


@methods
@given(m=sides, n=sides, all_sigma=st.booleans(), kind=st.sampled_from(KINDS), data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_method_takes_the_delta_or_as_many_triplets_as_it_says_and_needs_no_more(
    method: str, m: int, n: int, all_sigma: bool, kind: str, data: st.DataObject
) -> None:
    request = data.draw(requests(method, m, n))
    assert_enough(delta_of(kind, m, n, request.seed), request, all_sigma)


@methods
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cr", [8, 16, 32])
def test_so_it_is_however_little_an_entropy_coder_makes_of_vectors(method: str, kind: str, cr: float) -> None:
    request = request_of(method, cr, options=where_known(method, solver="nearest"))
    if is_feasible(request, 96, 96):
        assert_enough(delta_of(kind, 96, 96), request)


def assert_enough(delta: torch.Tensor, request: CompressConfig, all_sigma: bool = False) -> None:
    m, n = delta.shape
    needed = METHODS.get(request.method).needed_rank(m, n, request)
    of_entries = request.options.model_dump().get("domain") == "entries"
    assert (needed is None) == (request.method not in DECOMPOSING or of_entries)
    if needed is None:
        encode(Projection("w", (m, n), lambda: delta, no_factors), request)
        return
    assert 1 <= needed <= min(m, n)
    whole = decompose(delta, "w")
    few = leading(whole, needed)
    few = Factors(few.u, whole.sigma if all_sigma else few.sigma, few.v)
    read = (lambda: delta) if METHODS.get(request.method).reads_delta(request) else no_delta
    expected, codes = (encode(Projection("w", (m, n), read, lambda f=f: f), request) for f in (whole, few))
    assert same(codes, expected)


@methods
@given(data=st.data())
@settings(deadline=None)
def test_the_usual_ratio_is_at_most_the_ratio_and_proportional_to_it(method: str, data: st.DataObject) -> None:
    request = data.draw(any_requests(method))
    usual = METHODS.get(method).usual_cr(request)
    twice = METHODS.get(method).usual_cr(request.model_copy(update={"cr": 2 * request.cr}))
    if usual is None:
        assert method in ("impart", "impart-qt")
        assert twice is None
    else:
        assert 0 < usual <= request.cr
        assert twice == pytest.approx(2 * usual)
    if METHODS.get(method).needed_rank(8, 8, request) is None:
        assert usual == request.cr


@methods
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_inputs_play_no_part_where_none_are_asked_for(method: str, data: st.DataObject) -> None:
    request = data.draw(requests(method, 24, 32))
    wanted, options = METHODS.get(method).calibration(request), request.options.model_dump()
    assert (wanted == "inputs") == (method in QUANTIZING and options["solver"] != "nearest")
    if wanted != "none":
        return
    delta = decaying_delta(24, 32)
    for of_rows in (False, True):
        assert same(encode(calibrated(delta, of_rows=of_rows), request), encode(Projection.of(delta, "w"), request))


# Deltas of few entries, of one pair, and of no use.


@pytest.mark.parametrize("method", sorted({*METHODS} - {"bitdelta"}))  # which has a sign for every zero
@accountings
@given(m=sides, n=sides, data=st.data())
@settings(max_examples=30, deadline=None)
def test_a_delta_of_one_entry_stays_where_it_is(
    method: str, accounting: str, m: int, n: int, data: st.DataObject
) -> None:
    request = data.draw(requests(method, m, n, accounting=accounting))
    delta = one_entry(m, n, data.draw(st.integers(0, m * n - 1)))
    decoded = decode(encode(Projection.of(delta, "w"), request), Projection.of(delta, "w"), request)
    # Its vectors are axes, less a rounding or two of the decomposition, that a low keep probability magnifies.
    assert bool((decoded[delta == 0].abs() <= 1e-6).all())
    assert bool((decoded[delta != 0] <= 0).all())


@methods
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_delta_that_is_not_finite_is_refused_by_name(method: str, value: float) -> None:
    with pytest.raises(TensorValueError, match=r"The delta of 'layer\.w'.* (nan|NaN|inf|infinity)"):
        encode(Projection.of(torch.full((16, 24), value), "layer.w"), request_of(method, 1.5))


@methods
def test_a_coding_of_another_method_is_refused(method: str) -> None:
    other = request_of("dare" if method == "impart" else "impart", 1.5)
    with pytest.raises(ConfigError, match=f"was given a coding of {other.method}"):
        METHODS.get(method).encode(Projection.of(decaying_delta(16, 24), "w"), other)
