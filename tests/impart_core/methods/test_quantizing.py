"""What the methods that quantise have in common: exact budgets, calibration, determinism, and refusals in sentences."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from impart_core.base.errors import ConfigError, CorruptArtifactError, InfeasibleBudgetError
from impart_core.blocks.request import CompressConfig
from impart_core.checkpoint.index import Checkpoint, open_checkpoint
from impart_core.codec.parts import Codes
from impart_core.delta.budget import budget_bytes
from impart_core.delta.factors import Factors
from impart_core.delta.svd import decompose
from impart_core.engine.plan import check_request
from impart_core.methods import METHODS
from impart_core.methods.base import Projection
from tests.impart_core.methods.codes import calibrated, keep_of, nbytes, one_entry, outputs_differ, same
from tests.impart_core.methods.spectra import leading
from tests.impart_core.pipeline import config_of, small_options
from tests.support import decaying_delta

pytestmark = pytest.mark.usefixtures("one_thread")

CALIBRATED = ["impart-qt", "delta-come", "dare-qt"]
SHAPES = [(128, 128), (192, 96), (96, 320), (131, 97)]
Opened = tuple[Checkpoint, Checkpoint]
methods = pytest.mark.parametrize("method", CALIBRATED)
sides = st.integers(2, 40)


def config(method: str, cr: float = 8, **settings_: Any) -> CompressConfig:
    """Return settings whose ladder, where there is one, suits small matrices."""
    options = {**small_options(method), **settings_.pop("options", {})}
    return config_of(cr, method=method, options=options, **settings_)


def encode(projection: Projection, request: CompressConfig) -> Codes:
    return METHODS.get(request.method).encode(projection, request)


def decode(codes: Codes, projection: Projection, request: CompressConfig) -> torch.Tensor:
    return METHODS.get(request.method).decode(codes, projection.name, projection.shape, request.seed)


@st.composite
def requests(draw: st.DrawFn, method: str) -> CompressConfig:
    """Draw any request of a method, its options included."""
    options: dict[str, Any] = {
        "lossless": draw(st.booleans()),
        "fill": draw(st.booleans()),
        "solver": draw(st.sampled_from(["support", "masked", "nearest"])),
        "group_size": draw(st.sampled_from([1, 16, 128])),
    }
    if method == "dare-qt":
        options["bits"] = draw(st.sampled_from([2, 4, 8]))
    else:
        options["ladder"] = draw(st.sampled_from(["8x2,3x8,2", "16", "4", "2", "16x1,8x1,3", "2x1,16"]))
    if method == "impart-qt":
        options |= {"beta": draw(st.floats(0, 0.9)), "c": draw(st.floats(0, 2)), "rescale": draw(st.booleans())}
        options |= {"allocation": draw(st.sampled_from(["importance", "uniform"])), "preprune": draw(st.booleans())}
    return config_of(
        draw(st.floats(1, 16) | st.floats(1, 200)),
        method=method,
        accounting=draw(st.sampled_from(["bytes", "paper"])),
        seed=draw(st.integers(0, 5)),
        options=options,
    )


@methods
@given(m=sides, n=sides, calibrate=st.booleans(), data=st.data())
@settings(max_examples=150, deadline=None)
def test_every_feasible_request_is_within_its_bytes_and_decodes(
    method: str, m: int, n: int, calibrate: bool, data: st.DataObject
) -> None:
    request = data.draw(requests(method))
    sparsifier = METHODS.get(method)
    assume(request.cr <= sparsifier.highest_cr(m, n, request))
    delta = decaying_delta(m, n, seed=request.seed)
    projection = calibrated(delta) if calibrate else Projection.of(delta, "w")
    codes = encode(projection, request)
    assert request.accounting == "paper" or 2 * m * n / nbytes(codes) >= request.cr
    assert nbytes(codes) <= sparsifier.expected_bytes(m, n, request)
    decoded = decode(codes, projection, request)
    assert (decoded.shape, decoded.dtype) == ((m, n), torch.float32)
    assert bool(torch.isfinite(decoded).all())


@methods
@pytest.mark.parametrize("cr", [16, 32, 64, 128])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lossless", [True, False])
def test_at_the_papers_ratios_most_of_the_budget_is_used(
    method: str, cr: float, shape: tuple[int, int], lossless: bool
) -> None:
    options = {"lossless": lossless, "ladder": "8x2,3x32,2"} if method != "dare-qt" else {"lossless": lossless}
    request = config_of(cr, method=method, options=options)
    if cr > METHODS.get(method).highest_cr(*shape, request):
        assert method != "dare-qt"
        assert cr == 128  # not even one vector pair of 8 bits fits
        return
    projection, budget = calibrated(decaying_delta(*shape)), budget_bytes(*shape, cr)
    found = nbytes(encode(projection, request))
    # Whole vectors come one by one, and the next of at most 8 bits did not fit; nor did it thinned to its importance
    # where there are but one or two. Else thinned entries fill the rest.
    step = {"impart-qt": max(0.04 * budget, sum(shape) + 40), "delta-come": sum(shape) + 40, "dare-qt": 0.03 * budget}
    assert budget - step[method] - 4 <= found <= budget


@methods
def test_what_the_entropy_coder_saves_is_spent_unless_told_not_to(method: str) -> None:
    projection = calibrated(decaying_delta(192, 128))
    requests_ = {fill: config_of(16, method=method, options={"fill": fill}) for fill in (True, False)}
    packed = config_of(16, method=method, options={"lossless": False})
    codes = {fill: encode(projection, request) for fill, request in requests_.items()}
    assert nbytes(codes[False]) < 0.96 * nbytes(encode(projection, packed))
    assert nbytes(codes[False]) < nbytes(codes[True]) <= budget_bytes(192, 128, 16)
    errors = {fill: outputs_differ(projection, decode(codes[fill], projection, requests_[fill])) for fill in codes}
    assert errors[True] < errors[False] or method == "dare-qt"  # whose mask is another one


@methods
@pytest.mark.parametrize("of_rows", [False, True])
@pytest.mark.parametrize("lossless", [True, False])
def test_outputs_differ_less_than_with_rounding_to_the_nearest(method: str, of_rows: bool, lossless: bool) -> None:
    """At the same entries and grids: what is compared is the decoded delta before quantisation."""
    shape = (96, 128)
    projection = calibrated(decaying_delta(*shape), of_rows=of_rows)
    options = {"fill": False, "lossless": lossless}
    unquantised = decode_unquantised(projection, config(method, 8, options=options))
    errors = {}
    for solver in ("support", "masked", "nearest"):
        request = config(method, 8, options={**options, "solver": solver})
        found = decode(encode(projection, request), projection, request)
        errors[solver] = outputs_differ(replace(projection, delta=lambda: unquantised), found)
    assert errors["support"] < 0.9 * errors["nearest"]
    assert errors["support"] <= errors["masked"]


def decode_unquantised(projection: Projection, request: CompressConfig) -> torch.Tensor:
    """Return what the same kept entries would be decoded to if they were stored at full precision."""
    codes, shape, name = encode(projection, request), projection.shape, projection.name
    if request.method == "dare-qt":
        probability = (int(codes["keep"][0]) + 1) / 65536
        ones = decode(encode(Projection.of(torch.ones(shape), name), request), projection, request)
        return torch.where(ones != 0, projection.delta() / probability, 0.0)
    factors, count = projection.factors(), len(codes["sigma"])
    u, v = factors.u[:count].float(), factors.v[:count].float()
    if request.method == "impart-qt":
        keep = keep_of(codes)
        probability = torch.from_numpy((keep.astype(np.float64) + 1) / 65536).float()[:, None]
        masks = masks_of(name, shape, request.seed, keep)
        u, v = (torch.where(mask, side, 0.0) / probability for mask, side in zip(masks, (u, v), strict=True))
    return (u * codes["sigma"].float()[:, None]).T @ v


def masks_of(name: str, shape: tuple[int, int], seed: int, keep: Any) -> list[torch.Tensor]:
    from impart_core.codec.mask import mask_from_words, mask_key, mask_words

    return [
        torch.from_numpy(mask_from_words(mask_words(mask_key(seed, name, role), side, len(keep)), keep))
        for role, side in zip("uv", shape, strict=True)
    ]


@methods
@pytest.mark.parametrize("solver", ["support", "nearest"])
def test_inputs_of_rows_are_met_as_well_as_those_of_columns(method: str, solver: str) -> None:
    """A layer that stores its weight as (in, out) has the transposed delta; its masks are others, not its errors."""
    request, delta = config(method, 8, options={"solver": solver}), decaying_delta(96, 160)
    columns, rows = calibrated(delta), calibrated(delta.T.contiguous(), of_rows=True)
    found = [outputs_differ(each, decode(encode(each, request), each, request)) for each in (columns, rows)]
    assert found[1] == pytest.approx(found[0], rel=0.15)


@methods
def test_nothing_need_be_known_of_the_inputs(method: str) -> None:
    projection, request = Projection.of(decaying_delta(96, 128), "w"), config(method, 8)
    codes = encode(projection, request)
    assert nbytes(codes) <= budget_bytes(96, 128, 8)
    delta = projection.delta()
    # DARE multiplies what it keeps by two; the others keep what counts.
    assert torch.dist(decode(codes, projection, request), delta) < {"dare-qt": 1.5}.get(method, 0.6) * torch.norm(delta)


@methods
def test_activations_are_asked_for_unless_values_are_rounded_to_the_nearest(method: str) -> None:
    sparsifier = METHODS.get(method)
    for solver, wanted in (("support", "inputs"), ("masked", "inputs"), ("nearest", "none")):
        assert sparsifier.calibration(config(method, options={"solver": solver})) == wanted


@methods
@pytest.mark.parametrize("accounting", ["bytes", "paper"])
def test_the_same_request_gives_the_same_codes_each_time_and_a_masks_seed_or_name_others(
    method: str, accounting: str
) -> None:
    delta, request = decaying_delta(48, 64), config(method, 8, accounting=accounting)
    first = encode(calibrated(delta), request)
    assert same(encode(calibrated(delta.clone()), request), first)
    others = [
        encode(calibrated(delta), config(method, 8, accounting=accounting, seed=1)),
        encode(calibrated(delta, "other"), request),
    ]
    for other in others:
        assert same(other, first) == (method == "delta-come")


KINDS = ["decaying", "flat", "spikes", "blocks"]


def delta_of(kind: str, m: int, n: int) -> torch.Tensor:
    """Return a delta of the kind; vectors with few entries are what the entropy coder makes far smaller than others."""
    blocks = torch.block_diag(*(decaying_delta(4, 4, seed=at) for at in range(max(m, n) // 4 + 1)))[:m, :n]
    return {"decaying": decaying_delta(m, n), "flat": orthogonal(m, n), "spikes": torch.eye(m, n), "blocks": blocks}[
        kind
    ]


@methods
@given(m=sides, n=sides, all_sigma=st.booleans(), kind=st.sampled_from(KINDS), data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_needed_triplets_are_enough_for_the_same_codes(
    method: str, m: int, n: int, all_sigma: bool, kind: str, data: st.DataObject
) -> None:
    request = data.draw(requests(method))
    if request.cr <= METHODS.get(method).highest_cr(m, n, request):
        assert_enough(method, kind, (m, n), request, all_sigma)


@methods
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cr", [8, 16, 32])
def test_so_they_are_however_little_the_entropy_coder_makes_of_vectors(method: str, kind: str, cr: float) -> None:
    assert_enough(method, kind, (96, 96), config(method, cr, options={"solver": "nearest"}))


def assert_enough(
    method: str, kind: str, shape: tuple[int, int], request: CompressConfig, all_sigma: bool = False
) -> None:
    needed = METHODS.get(method).needed_rank(*shape, request)
    assert (needed is None) == (method == "dare-qt")
    if needed is None:
        return
    assert 1 <= needed <= min(shape)
    whole = decompose(delta_of(kind, *shape), "w")
    few = leading(whole, needed)
    few = Factors(few.u, whole.sigma if all_sigma else few.sigma, few.v)
    expected, codes = (encode(Projection("w", shape, no_delta, lambda f=f: f), request) for f in (whole, few))
    assert same(codes, expected)


def orthogonal(m: int, n: int) -> torch.Tensor:
    u, _, v = torch.linalg.svd(torch.randn(m, n, generator=torch.Generator().manual_seed(m)), full_matrices=False)
    return u @ v


def no_delta() -> torch.Tensor:
    raise AssertionError("it works on the factors")


@methods
@pytest.mark.parametrize("accounting", ["bytes", "paper"])
@given(m=sides, n=sides, data=st.data())
@settings(max_examples=50, deadline=None)
def test_the_highest_ratio_works(method: str, accounting: str, m: int, n: int, data: st.DataObject) -> None:
    request = data.draw(requests(method)).model_copy(update={"accounting": accounting})
    highest = METHODS.get(method).highest_cr(m, n, request)
    assume(highest >= 1)
    request = request.model_copy(update={"cr": highest})
    projection = Projection.of(decaying_delta(m, n), "w")
    codes = encode(projection, request)
    assert nbytes(codes) <= METHODS.get(method).expected_bytes(m, n, request)
    if accounting == "bytes":
        assert nbytes(codes) <= budget_bytes(m, n, highest)
    assert decode(codes, projection, request).shape == (m, n)


@pytest.mark.parametrize("method", CALIBRATED[:2])
@pytest.mark.parametrize("accounting", ["bytes", "paper"])
def test_a_delta_of_rank_one_comes_back_from_one_pair(method: str, accounting: str) -> None:
    delta = decaying_delta(48, 64)[:, :1] @ decaying_delta(1, 64)
    projection, request = Projection.of(delta, "w"), config(method, 4, accounting=accounting)
    codes = encode(projection, request)
    assert len(codes["sigma"]) == 1
    # Eight bits a group of values: half a step of 1/255 of their range, in u and in v.
    assert torch.dist(decode(codes, projection, request), delta) < 0.02 * torch.norm(delta)


@methods
@given(m=sides, n=sides, at=st.integers(0, 1599), lossless=st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_delta_of_one_entry_stays_where_it_is(method: str, m: int, n: int, at: int, lossless: bool) -> None:
    request, delta = config(method, 1.5, options={"lossless": lossless}), one_entry(m, n, at)
    assume(METHODS.get(method).highest_cr(m, n, request) >= 1.5)
    projection = Projection.of(delta, "w")
    decoded = decode(encode(projection, request), projection, request)
    assert not decoded[delta == 0].any()


@pytest.fixture(scope="module")
def opened(pair: tuple[Path, Path]) -> Opened:
    return open_checkpoint(pair[0]), open_checkpoint(pair[1])


@methods
@pytest.mark.parametrize("accounting", ["bytes", "paper"])
def test_too_high_a_ratio_is_refused_in_a_sentence_that_names_the_highest(
    method: str, accounting: str, opened: Opened
) -> None:
    with pytest.raises(InfeasibleBudgetError) as caught:
        check_request(*opened, config(method, 10**7, accounting=accounting))
    message = str(caught.value)
    assert message.startswith("CR 1e+07 is too high to keep anything of 14 of 14 projections; the tightest is")
    assert f"for this model with method '{method}' and these settings is" in message
    highest = float(message.split("settings is ")[1].split(". ")[0].rstrip("."))
    check_request(*opened, config(method, highest, accounting=accounting))
    with pytest.raises(InfeasibleBudgetError):
        check_request(*opened, config(method, highest + 0.011, accounting=accounting))


@pytest.mark.parametrize("method", CALIBRATED[:2])
def test_a_ladder_of_more_vectors_than_the_largest_projection_has_is_refused(method: str, opened: Opened) -> None:
    for ladder in ("8x2,3x32,2", "2x33,16"):
        with pytest.raises(ConfigError, match=rf"^Ladder {ladder} asks for 3\d vectors before the rest, but the larg"):
            check_request(*opened, config_of(4, method=method, options={"ladder": ladder}))
    with pytest.raises(ConfigError, match=r"largest matrix has rank 32\. Lower the counts to 32 in all, as in "):
        check_request(*opened, config_of(4, method=method))
    check_request(*opened, config_of(4, method=method, options={"ladder": "8x2,3x30,2"}))


@methods
@pytest.mark.parametrize("lossless", [True, False])
def test_codes_that_do_not_fit_their_projection_are_refused_by_name(method: str, lossless: bool) -> None:
    request = config(method, 4, options={"lossless": lossless})
    projection = Projection.of(decaying_delta(48, 64), "w")
    codes = encode(projection, request)
    first = "keep" if method == "dare-qt" else "sigma"
    changed: list[Codes] = [{part: code for part, code in codes.items() if part != gone} for gone in codes]
    changed += [{**codes, part: code[:-1]} for part, code in codes.items() if part not in (first, "keep")]
    changed += [{**codes, part: code.double()} for part, code in codes.items()]
    changed += [{**codes, part: torch.cat([code, code[:1]])} for part, code in codes.items()]
    for other in changed:
        with pytest.raises(CorruptArtifactError, match="'w'"):
            decode(other, projection, request)
    with pytest.raises(CorruptArtifactError, match="'w'"):
        decode(codes, replace(projection, shape=(48, 63)), request)


@pytest.mark.parametrize(("method", "cr"), [("impart-qt", 32), ("dare-qt", 8)])
@pytest.mark.parametrize("lossless", [True, False])
def test_another_mask_is_noticed_where_it_keeps_another_number(method: str, cr: float, lossless: bool) -> None:
    request = config(method, cr, options={"lossless": lossless})
    projection = Projection.of(decaying_delta(96, 128), "w")
    codes = encode(projection, request)
    with pytest.raises(CorruptArtifactError, match="'renamed'"):
        decode(codes, replace(projection, name="renamed"), request)
    with pytest.raises(CorruptArtifactError, match="'w'"):
        decode(codes, projection, request.model_copy(update={"seed": 1}))


@methods
def test_codes_said_to_be_of_a_huge_matrix_are_refused_before_memory_is_taken(method: str) -> None:
    request, projection = config(method, 4), Projection.of(decaying_delta(48, 64), "w")
    codes = encode(projection, request)
    with pytest.raises(CorruptArtifactError, match=r"codes of 'w' are .* bytes, far too few for"):
        decode(codes, replace(projection, shape=(1 << 24, 1 << 24)), request)
