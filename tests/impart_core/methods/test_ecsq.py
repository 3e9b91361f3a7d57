"""What ecsq keeps: pairs of the delta's rank, without bias at gain 1, or entries where these keep more."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.base.errors import CorruptArtifactError
from impart_core.codec.entropy import decode_runs, encode_runs
from impart_core.codec.parts import Codes
from impart_core.codec.tables import Table, number
from impart_core.delta.budget import budget_bytes
from impart_core.delta.fidelity import fidelity_of
from impart_core.methods import METHODS
from impart_core.methods.base import Projection
from impart_core.methods.ecsq import EcsqOptions
from impart_core.quantization.ecsq import ENTRIES, FACTORS, read_stored
from tests.impart_core.methods.codes import same
from tests.impart_core.methods.requests import decode, delta_of, encode, request_of
from tests.support import decaying_delta

SHAPE = (96, 128)


def kind_of(codes: Codes, shape: tuple[int, int]) -> int:
    stored = read_stored(codes, "w", shape)
    assert stored is not None
    return stored.kind


@pytest.mark.parametrize("cr", [8, 32, 60])
def test_a_delta_of_rank_one_comes_back_from_one_pair(cr: float) -> None:
    delta = delta_of("rank one", *SHAPE)
    projection, request = Projection.of(delta, "w"), request_of("ecsq", cr, options={"domain": "factors"})
    codes = encode(projection, request)
    stored = read_stored(codes, "w", SHAPE)
    assert stored is not None
    assert len(stored.scales) == 1
    assert float(torch.dist(decode(codes, projection, request), delta)) < 0.06 * float(delta.norm())


@pytest.mark.parametrize("domain", ["auto", "factors", "entries"])
@pytest.mark.parametrize("size", [1e-45, 1e-42, 1e-38])
def test_a_delta_too_small_for_any_scale_is_taken_for_zero(size: float, domain: str) -> None:
    delta = torch.full((8, 12), size)
    projection, request = Projection.of(delta, "w"), request_of("ecsq", 2, options={"domain": domain})
    found = decode(encode(projection, request), projection, request)
    assert torch.allclose(found, delta, rtol=0.03, atol=2.0**-136)


@pytest.mark.parametrize("filling", ["lagrangian", "one_step"])
@given(seed=st.integers(0, 1000), cr=st.floats(8, 200))
@settings(max_examples=20, deadline=None)
def test_each_kept_direction_is_unbiased(filling: str, seed: int, cr: float) -> None:
    delta = decaying_delta(*SHAPE, seed=seed)
    projection = Projection.of(delta, "w")
    request = request_of("ecsq", cr, options={"domain": "factors", "filling": filling})
    stored = read_stored(encode(projection, request), "w", SHAPE)
    assert stored is not None
    found, factors = stored.delta("w"), projection.factors()
    kept = len(stored.scales)
    gains = torch.stack(
        [u @ found @ v / sigma for u, sigma, v in zip(factors.u, factors.sigma, factors.v, strict=True)]
    )
    # A scale is stored to 2.2 %; what other codes add, which are near orthogonal, is noise that has no sign.
    near = ((gains - 1).abs() < 0.25).sum()
    assert near >= 0.6 * kept
    assert abs(float(gains.sort(descending=True).values[:kept].mean()) - 1) < 0.15


@pytest.mark.parametrize("domain", ["auto", "factors", "entries"])
@pytest.mark.parametrize("filling", ["lagrangian", "one_step"])
def test_more_bytes_keep_more(domain: str, filling: str) -> None:
    projection = Projection.of(decaying_delta(*SHAPE), "w")
    options, shares = {"domain": domain, "filling": filling}, []
    for cr in (400, 200, 100, 50, 25, 12, 6):
        request = request_of("ecsq", cr, options=options)
        shares.append(fidelity_of(projection.delta(), decode(encode(projection, request), projection, request)))
    kept = [share.cosine_squared for share in shares]
    assert all(more >= 0.98 * less for less, more in pairwise(kept))
    assert kept[-1] > 2 * kept[0]


@given(low=st.floats(1, 4096), high=st.floats(1, 4096))
def test_the_exponent_falls_with_the_ratio_from_energy_alone(low: float, high: float) -> None:
    low, high = sorted((low, high))
    options = EcsqOptions()
    assert 2 >= options.exponent(low) >= options.exponent(high) >= 1
    assert [options.exponent(cr) for cr in (8, 32, 64, 512)] == [2, 2, 1, 1]
    assert options.exponent(32 * 2**0.5) == pytest.approx(1.5)
    assert EcsqOptions(p=0.5).exponent(low) == 0.5


@pytest.mark.parametrize("cr", [16, 128])
def test_an_exponent_that_is_given_is_that_of_its_ratio(cr: float) -> None:
    projection = Projection.of(decaying_delta(*SHAPE), "w")
    usual = EcsqOptions().exponent(cr)
    by_default, given_it, other = (
        encode(projection, request_of("ecsq", cr, options=options)) for options in ({}, {"p": usual}, {"p": 3 - usual})
    )
    assert same(by_default, given_it)
    assert not same(by_default, other)


@pytest.mark.parametrize("gain", [0.0, 0.5, 1.0])
def test_kept_directions_are_scaled_from_least_squares_to_unbiased(gain: float) -> None:
    delta = delta_of("rank one", *SHAPE)
    projection = Projection.of(delta, "w")
    request = request_of("ecsq", 96, options={"gain": gain, "domain": "factors"})
    found = decode(encode(projection, request), projection, request)
    share = float((found * delta).sum() / (delta * delta).sum())
    cosine = float((found * delta).sum() / (found.norm() * delta.norm()))
    assert share == pytest.approx(cosine ** (2 * (1 - gain)), abs=0.03)


@pytest.mark.parametrize(("kind", "cr", "expected"), [("flat", 6, ENTRIES), ("decaying", 32, FACTORS)])
def test_what_keeps_more_is_coded(kind: str, cr: float, expected: int) -> None:
    projection = Projection.of(delta_of(kind, *SHAPE), "w")
    assert kind_of(encode(projection, request_of("ecsq", cr)), SHAPE) == expected
    both = [request_of("ecsq", cr, options={"domain": domain}) for domain in ("factors", "entries")]
    kinds = [kind_of(encode(projection, request), SHAPE) for request in both]
    assert kinds == [FACTORS, ENTRIES]


@pytest.mark.parametrize(("cr", "gain", "lowered"), [(8, 1, False), (40, 1, True), (100, 1, True), (40, 0.5, False)])
def test_entries_are_unbiased_as_far_as_their_noise_is_no_larger_than_the_delta(
    cr: float, gain: float, lowered: bool
) -> None:
    """At each of these ratios they keep more of it than vectors do."""
    delta = delta_of("flat", *SHAPE)
    projection = Projection.of(delta, "w")
    requests = [request_of("ecsq", cr, options={"gain": gain, "domain": domain}) for domain in ("entries", "auto")]
    codes = [encode(projection, request) for request in requests]
    assert [kind_of(found, SHAPE) for found in codes] == [ENTRIES, ENTRIES]
    asked, usual = (decode(found, projection, request) for found, request in zip(codes, requests, strict=True))
    vectors = request_of("ecsq", cr, options={"gain": gain, "domain": "factors"})
    in_vectors = decode(encode(projection, vectors), projection, vectors)
    assert fidelity_of(delta, asked).cosine_squared > fidelity_of(delta, in_vectors).cosine_squared
    assert (noise_of(asked, delta) > 1) == lowered
    if lowered:
        assert noise_of(usual, delta) == pytest.approx(1, rel=0.05)  # a scale is a step of 2^(1/16)
    else:
        assert torch.equal(usual, asked)


def noise_of(found: torch.Tensor, delta: torch.Tensor) -> float:
    return float((found - fidelity_of(delta, found).gain * delta).square().sum() / delta.square().sum())


def test_more_pairs_than_the_rank_are_refused_by_name() -> None:
    projection, request = Projection.of(decaying_delta(40, 40), "w"), request_of("ecsq", 2)
    codes = encode(projection, request.model_copy(update={"cr": 4.0}))
    stored = read_stored(codes, "w", (40, 40))
    assert stored is not None
    other = replace(stored, shape=(1, 79)).packed()
    with pytest.raises(CorruptArtifactError, match=r"'w' have .* symbols, which no"):
        METHODS.get("ecsq").decode(other, "w", (1, 79), 0)


def test_codes_of_version_1_are_read() -> None:
    projection, request = Projection.of(decaying_delta(*SHAPE), "w"), request_of("ecsq", 16)
    stored = read_stored(encode(projection, request), "w", SHAPE)
    assert stored is not None
    runs = np.split(
        np.concatenate(list(decode_runs(stored.stream, stored.tables, "w"))),
        np.cumsum([table.symbols for table in stored.tables])[:-1],
    )
    tables = [Table.exact(np.bincount(np.abs(run)).astype(np.int64)) for run in runs]
    head = number(2 * len(tables) + stored.kind) + bytes([stored.exponent + 128])
    listed = b"".join(table.packed(1)[1:] for table in tables)
    old = head + listed + stored.scales.tobytes() + encode_runs(runs, tables)
    codes = {"codes": torch.from_numpy(np.frombuffer(number(len(old)) + old, dtype=np.uint8).copy())}
    assert torch.equal(METHODS.get("ecsq").decode(codes, "w", SHAPE, 0), stored.delta("w"))
    nothing = {"codes": torch.zeros(1, dtype=torch.uint8)}
    assert not METHODS.get("ecsq").decode(nothing, "w", SHAPE, 0).any()


@pytest.mark.parametrize("cr", [32, 64, 128, 256])
def test_the_budget_is_used_to_within_two_per_cent(cr: float) -> None:
    projection = Projection.of(decaying_delta(256, 512), "w")
    codes = encode(projection, request_of("ecsq", cr))
    budget = budget_bytes(256, 512, cr)
    assert 0.98 * budget <= len(codes["symbols"]) <= budget


@pytest.mark.parametrize(("hidden", "most"), [(192, 0.06), (1024, 0.02)])
@pytest.mark.parametrize("cr", [64, 256])
def test_all_that_is_stored_is_little_more_than_the_entropy_of_the_symbols(hidden: int, most: float, cr: float) -> None:
    projection = Projection.of(decaying_delta(hidden, hidden), "w")
    codes = encode(projection, request_of("ecsq", cr))
    stored = read_stored(codes, "w", (hidden, hidden))
    assert stored is not None
    symbols, entropy = np.concatenate(list(decode_runs(stored.stream, stored.tables, "w"))), 0.0
    for run in np.split(symbols, np.cumsum([table.symbols for table in stored.tables])[:-1]):
        counts = np.bincount(np.abs(run))
        some = counts[counts > 0]
        entropy += float((some * np.log2(some.sum() / some)).sum() + counts[1:].sum()) / 8
    assert len(codes["symbols"]) <= (1 + most) * entropy


def test_a_budget_that_is_given_stands_in_place_of_that_of_the_ratio() -> None:
    projection, request = Projection.of(decaying_delta(*SHAPE), "w"), request_of("ecsq", 64)
    by_ratio = budget_bytes(*SHAPE, 64)
    for budget in (40, by_ratio // 2, by_ratio, 2 * by_ratio):
        codes = encode(replace(projection, budget=budget), request)
        assert 0.9 * budget - 20 <= len(codes["symbols"]) <= budget
        assert decode(codes, projection, request).any()
    assert encode(replace(projection, budget=by_ratio), request)["symbols"].equal(
        encode(projection, request)["symbols"]
    )
