"""ImPart-Qt: ImPart's masks, Algorithm 3's sparsity, and what the codes are."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.base.errors import CorruptArtifactError
from impart_core.codec.mask import keep_probability
from impart_core.codec.parts import Codes, nbytes
from impart_core.delta.budget import budget_bytes, kept_fraction, vector_fraction
from impart_core.delta.svd import decompose
from impart_core.methods.base import Projection
from impart_core.methods.impart import Impart, allocate, factor_mask
from impart_core.methods.impart_qt import ImpartQt, ImpartQtOptions
from impart_core.quantization.cost import paper_alpha, paper_sparsity
from impart_core.quantization.ladder import Ladder
from impart_core.quantization.streams import unpack_matrices
from tests.impart_core.methods.codes import calibrated, keep_of
from tests.impart_core.pipeline import config_of
from tests.support import decaying_delta

pytestmark = pytest.mark.usefixtures("one_thread")

METHOD = ImpartQt()


def encoded(projection: Projection, cr: float = 16, **settings_: Any) -> Codes:
    return METHOD.encode(projection, config_of(cr, method="impart-qt", **settings_))


def masks_of(codes: Codes, name: str, shape: tuple[int, int], seed: int) -> list[torch.Tensor]:
    keep = keep_of(codes)
    return [factor_mask(seed, name, role, side, keep) for role, side in zip("uv", shape, strict=True)]


def as_impart(codes: Codes, projection: Projection, seed: int) -> Codes:
    """Return ImPart's codes of the same kept entries, in float16."""
    factors, masks = projection.factors(), masks_of(codes, projection.name, projection.shape, seed)
    sides = zip("uv", (factors.u, factors.v), masks, strict=True)
    kept = {role: vectors[: len(mask)][mask].half() for role, vectors, mask in sides}
    return {"sigma": codes["sigma"].float(), "keep": torch.from_numpy(keep_of(codes)), **kept}


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("solver", ["nearest", "support"])
def test_at_16_bits_it_is_impart_to_the_rounding_of_float16(solver: str, rescale: bool) -> None:
    projection = calibrated(decaying_delta(64, 96))
    options = {"ladder": "16", "lossless": False, "solver": solver, "rescale": rescale}
    codes = encoded(projection, 4, seed=3, options=options)
    found = METHOD.decode(codes, "w", (64, 96), 3)
    expected = Impart().decode(as_impart(codes, projection, 3), "w", (64, 96), 3)
    if solver == "nearest":  # the same float16 values; products in float32 in another order
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    else:  # each side makes up for 2⁻¹¹ of its entries in its other ones
        assert torch.dist(found, expected) < 2**-9 * torch.norm(expected)


def test_the_parts_are_sigma_keep_and_the_kept_entries_of_both_sides() -> None:
    projection = calibrated(decaying_delta(96, 128), "layer.w")
    codes = encoded(projection, 24, seed=9, options={"c": 1.0})
    factors, pairs = projection.factors(), len(codes["sigma"])
    assert {part: code.dtype for part, code in codes.items()} == {
        "sigma": torch.bfloat16,
        "keep": torch.uint8,
        "layout": torch.uint16,
        "scales": torch.float16,
        "zeros": torch.uint8,
        "forms": torch.uint8,
        "lengths": torch.uint32,
        "packed": torch.uint32,
        "codes": torch.uint8,
    }
    assert torch.equal(codes["sigma"], factors.sigma[:pairs].bfloat16())
    assert codes["layout"].tolist()[:4] == [128, 1, 8, 2]
    masks = masks_of(codes, "layer.w", (96, 128), 9)
    sides = unpack_matrices(codes, "layer.w", masks)
    for values, mask in zip(sides, masks, strict=True):
        assert 0 < int(mask.sum()) < mask.numel()
        assert not values[~mask].any()
    # The first vector has 8 bits and is kept whole; that of u also makes up for others.
    assert torch.dist(sides[1][0], factors.v[0].float()) < 0.02
    keep = keep_probability(keep_of(codes))
    scaled = [side.double() / torch.from_numpy(keep)[:, None] for side in sides]
    expected = (scaled[0] * codes["sigma"][:, None].double()).T @ scaled[1]
    found = METHOD.decode(codes, "layer.w", (96, 128), 9)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("ladder", ["8x2,3x32,2", "8x2,4", "2", "16"])
@pytest.mark.parametrize("shape", [(96, 96), (64, 160)])
@pytest.mark.parametrize("cr", [8, 32])
def test_under_the_papers_count_the_kept_fraction_is_algorithm_3s(
    ladder: str, shape: tuple[int, int], cr: float
) -> None:
    (m, n), rank = shape, min(shape)
    projection = Projection.of(decaying_delta(m, n), "w")
    options = {"ladder": ladder, "solver": "nearest", "c": 0.7}
    keep = keep_probability(keep_of(encoded(projection, cr, accounting="paper", options=options)))
    sigma = decompose(projection.delta(), "w").sigma.double().numpy()
    beta = 1 - vector_fraction(m, n, 0.6)

    def drop_at(alpha: float) -> Any:
        return allocate((sigma / sigma[0]) ** 0.7, rank, alpha, beta)

    target = 1 - kept_fraction(m, n, cr)
    exact = 1 - drop_at(paper_alpha(drop_at, rank, target, beta, Ladder.parse(ladder)))
    if len(keep) == len(exact):  # else they differ by the one pair that α may move
        np.testing.assert_allclose(keep, exact, rtol=0, atol=1.5 / 256)
    assert abs(len(keep) - len(exact)) <= 1
    # Met to one pair and the 1e-4 to which α is found, or all that pre-pruning leaves is not enough to miss it.
    least = paper_sparsity(np.zeros(int(rank * (1 - beta) + 1e-9)), rank, Ladder.parse(ladder))
    found = paper_sparsity(1 - keep, rank, Ladder.parse(ladder))
    assert found == pytest.approx(max(target, least), abs=1 / rank + 1e-3)


@pytest.mark.parametrize(("ladder", "cr"), [("8", 128), ("8", 400), ("8x2,16", 500)])
def test_where_a_step_of_all_probabilities_is_too_much_the_papers_count_is_met_with_fewer_pairs(
    ladder: str, cr: float
) -> None:
    options = {"ladder": ladder, "solver": "nearest", "beta": 0.0, "allocation": "uniform", "lossless": False}
    config = config_of(cr, method="impart-qt", accounting="paper", options=options)
    delta = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    codes = METHOD.encode(Projection.of(delta, "w"), config)
    found = paper_sparsity(1 - keep_probability(keep_of(codes)), 512, Ladder.parse(ladder))
    target = 1 - kept_fraction(512, 512, cr)
    assert target <= found < target + 2 / 512
    assert nbytes(codes) <= METHOD.expected_bytes(512, 512, config)


def test_where_the_papers_count_leaves_nothing_the_first_pair_is_kept_whole() -> None:
    codes = encoded(Projection.of(torch.eye(64), "w"), 200, accounting="paper", options={"solver": "nearest"})
    assert codes["keep"].tolist() == [255]


@given(m=st.integers(2, 40), n=st.integers(2, 40), cr=st.floats(1, 100), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_a_uniform_allocation_drops_pairs_that_would_not_fit_even_without_entries(
    m: int, n: int, cr: float, seed: int
) -> None:
    settings_: dict[str, Any] = {
        "seed": seed,
        "options": {"allocation": "uniform", "preprune": False, "ladder": "8x2,2", "solver": "nearest"},
    }
    if cr > METHOD.highest_cr(m, n, config_of(cr, method="impart-qt", **settings_)):
        return
    codes = encoded(Projection.of(decaying_delta(m, n, seed=seed), "w"), cr, **settings_)
    assert nbytes(codes) <= budget_bytes(m, n, cr)
    assert 1 <= len(codes["keep"]) <= min(m, n)
    assert len(codes["keep"].unique()) == 1


def test_without_rescaling_kept_entries_are_decoded_as_they_are() -> None:
    projection = Projection.of(decaying_delta(96, 128), "w")
    settings_: dict[str, Any] = {"lossless": False, "solver": "nearest"}
    usual = encoded(projection, 24, options=settings_)
    codes = encoded(projection, 24, options={**settings_, "rescale": False})
    assert all(torch.equal(codes[part], usual[part]) for part in ("keep", "codes", "scales", "zeros"))
    keep, sigma = torch.from_numpy(keep_probability(keep_of(usual))), projection.factors().sigma
    assert torch.equal(codes["sigma"], (sigma[: len(keep)].double() * keep**2).bfloat16())
    u, v = unpack_matrices(codes, "w", masks_of(codes, "w", (96, 128), 0))
    expected = (u * (codes["sigma"].double() / keep**2).float()[:, None]).T @ v
    found = METHOD.decode(codes, "w", (96, 128), 0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_keep_codes_that_do_not_fit_their_projection_are_refused_by_name() -> None:
    codes = encoded(Projection.of(decaying_delta(64, 96), "w"), options={"solver": "nearest"})
    longer = 65 - len(codes["keep"])
    many = {
        **codes,
        "keep": torch.cat([codes["keep"], codes["keep"][-1:].repeat(longer)]),
        "sigma": torch.cat([codes["sigma"], codes["sigma"][-1:].repeat(longer)]),
    }
    with pytest.raises(CorruptArtifactError, match="codes of 'w' have 65 vector pairs, more than its rank"):
        METHOD.decode(many, "w", (64, 96), 0)
    fewer = {**codes, "keep": codes["keep"][:-1], "sigma": codes["sigma"][:-1]}
    for changed in (fewer, {**codes, "keep": codes["keep"][:-1]}, {**codes, "keep": codes["keep"][:0]}):
        with pytest.raises(CorruptArtifactError, match="'w'"):
            METHOD.decode(changed, "w", (64, 96), 0)


def test_c_is_lower_than_imparts_and_all_else_is_the_same() -> None:
    found = ImpartQtOptions()
    assert (found.c, found.beta, str(found.ladder), found.group_size) == (0.5, 0.6, "8x2,3x32,2", 128)
    assert (found.solver, found.lossless, found.fill, found.allocation) == ("support", True, True, "importance")
    assert found.more_room("paper") == "lower beta"
    assert found.more_room("bytes") is None
