"""What methods that decompose have in common: which triplets are stored, and what they are decoded to.

Of LowRank and Delta-CoMe, which keep vectors whole, also how many. LowRank has nothing beyond this.
"""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.base.errors import CorruptArtifactError
from impart_core.blocks.request import CompressConfig
from impart_core.codec.mask import keep_probability
from impart_core.codec.parts import nbytes
from impart_core.delta.budget import budget_bytes
from impart_core.methods import METHODS, QUANTIZING
from impart_core.methods.base import Projection
from impart_core.quantization.ladder import Ladder
from tests.impart_core.methods.codes import calibrated, keep_of, stored_vectors, sum_of_pairs, vector_masks
from tests.impart_core.methods.requests import (
    DECOMPOSING,
    decode,
    delta_of,
    encode,
    request_of,
    requests,
    where_known,
)
from tests.support import decaying_delta

methods = pytest.mark.parametrize("method", sorted({*DECOMPOSING} - {"ecsq"}))  # whose pairs are tested in test_ecsq
accountings = pytest.mark.parametrize("accounting", ["bytes", "paper"])
whole = pytest.mark.parametrize("method", ["delta-come", "lowrank"])
sides = st.integers(2, 40)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("impart", {}),
        ("lowrank", {}),
        *(
            (method, {"ladder": ladder, "solver": solver, "lossless": ladder != "16"})
            for method in ("impart-qt", "delta-come")
            for ladder in ("16", "8x2,3x16,2")
            for solver in ("nearest", "support")
        ),
    ],
    ids=str,
)
@accountings
@pytest.mark.parametrize("shape", [(64, 96), (40, 24), (32, 32), (2, 300), (300, 2)])
def test_codes_are_the_leading_triplets_where_they_are_kept_and_what_is_decoded_is_their_sum(
    method: str, options: dict[str, Any], accounting: str, shape: tuple[int, int]
) -> None:
    options = {**options, **where_known(method, beta=0.3)}
    request = request_of(method, 1.7, seed=9, accounting=accounting, options=options)
    projection = calibrated(decaying_delta(*shape), "layer.w")
    codes, factors = encode(projection, request), projection.factors()
    masks, pairs = vector_masks(codes, shape, 9, "layer.w"), len(codes["sigma"])
    assert torch.equal(codes["sigma"], factors.sigma[:pairs].to(codes["sigma"].dtype))
    exact = [torch.where(mask, side[:pairs], 0.0) for side, mask in zip((factors.u, factors.v), masks, strict=True)]
    vectors, found = stored_vectors(codes, masks, "layer.w"), decode(codes, projection, request).double()
    if options.get("ladder", "16") == "16":
        if options.get("solver") != "support":
            assert all(torch.equal(side, of.half().float()) for side, of in zip(vectors, exact, strict=True))
        # Float16 is 2⁻¹¹ relative in u and in v, of which calibration makes up for some in other entries.
        assert torch.dist(found, sum_of_pairs(codes, exact)) < 2**-9 * torch.norm(found)
    assert torch.dist(vectors[1][0], exact[1][0]) < 0.02  # at 8 bits or more; that of u also makes up for others
    expected = sum_of_pairs(codes, vectors)  # four roundings of each factor to float32, and a sum over the pairs
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(("method", "cr"), [("impart", 4), ("impart-qt", 24)])
@accountings
def test_without_rescaling_singular_values_make_up_for_it_and_nothing_else_differs(
    method: str, cr: float, accounting: str
) -> None:
    projection = Projection.of(decaying_delta(96, 128), "w")
    usual, codes = (
        encode(projection, request_of(method, cr, accounting=accounting, options={"rescale": rescale, "beta": 0.6}))
        for rescale in (True, False)
    )
    assert codes.keys() == usual.keys()
    assert all(torch.equal(code, usual[part]) for part, code in codes.items() if part != "sigma")
    keep = torch.from_numpy(keep_probability(keep_of(codes)))
    sigma = projection.factors().sigma[: len(keep)].double() * keep**2  # decoding divides by it in u and in v
    assert keep.min() < 0.9
    assert torch.equal(codes["sigma"], sigma.to(codes["sigma"].dtype))


@methods
@accountings
def test_a_delta_of_rank_one_comes_back_from_one_pair(method: str, accounting: str) -> None:
    projection = Projection.of(delta_of("rank one", 48, 64), "w")
    request = request_of(method, 4, accounting=accounting)
    codes = encode(projection, request)
    assert len(codes["sigma"]) == 1
    # Eight bits a group of values: half a step of 1/255 of their range, in u and in v; else 2⁻¹¹ in each.
    tolerance = 0.02 if method in QUANTIZING else 2**-10
    found = decode(codes, projection, request)
    assert torch.dist(found, projection.delta()) < tolerance * torch.norm(projection.delta())


@methods
@given(rank=st.integers(1, 3), data=st.data())
@settings(max_examples=30, deadline=None)
def test_no_pair_beyond_the_deltas_rank_is_kept(method: str, rank: int, data: st.DataObject) -> None:
    request = data.draw(requests(method, 24, 32))
    delta = decaying_delta(24, 32)[:, :rank] @ decaying_delta(rank, 32)
    assert len(encode(Projection.of(delta, "w"), request)["sigma"]) <= rank


@methods
def test_codes_of_more_pairs_than_the_rank_are_refused_by_name(method: str) -> None:
    request, projection = request_of(method, 16), Projection.of(decaying_delta(64, 96), "w")
    codes = encode(projection, request)
    more = {
        part: torch.cat([code, code[-1:].repeat(65 - len(code))])
        for part, code in codes.items()
        if part == "sigma" or part.startswith("keep")
    }
    expected = "have 65 vector pairs, more than its rank" if method in QUANTIZING else ""
    with pytest.raises(CorruptArtifactError, match=f"codes of 'w'.*{expected}"):
        decode({**codes, **more}, projection, request)


# Whole vectors.


def bytes_of(request: CompressConfig, m: int, n: int, count: int) -> int:
    """Return the bytes of so many whole vectors, counted out."""
    if request.method == "lowrank":
        return (2 * (m + n) + 4) * count
    options, total = request.options.model_dump(), 2 * count + 2 * 2
    for span in Ladder.parse(str(options["ladder"])).spans(count):
        total += 2 * 2
        for side in (m, n):
            entries = (span.stop - span.start) * side
            groups = 0 if span.bits == 16 else -(-entries // options["group_size"])
            total += -(-entries * span.bits // 8) + 2 * groups + -(-groups * span.bits // 8)
    return total


@whole
@given(m=sides, n=sides, data=st.data())
@settings(max_examples=100, deadline=None)
def test_one_vector_more_would_not_fit(method: str, m: int, n: int, data: st.DataObject) -> None:
    options = where_known(method, lossless=False, solver="nearest")
    request = data.draw(requests(method, m, n, accounting="bytes", options=options))
    codes = encode(Projection.of(decaying_delta(m, n, seed=request.seed), "w"), request)
    count, budget = len(codes["sigma"]), budget_bytes(m, n, request.cr)
    assert nbytes(codes) == bytes_of(request, m, n, count) <= budget
    assert count == min(m, n) or bytes_of(request, m, n, count + 1) > budget
    assert METHODS.get(method).needed_rank(m, n, request) == count
    assert method != "lowrank" or METHODS.get(method).expected_bytes(m, n, request) == nbytes(codes)


PAPER: list[tuple[str, tuple[int, int], float, dict[str, Any], int]] = [
    # r·d = mn/(CR(m + n)): 32·1/16, 24·(1/4)·…; halves up.
    *(("lowrank", (side, side), cr, {}, count) for side, cr, count in ((32, 8, 2), (64, 16, 2), (20, 4, 3))),
    *(("lowrank", (24, 40), cr, {}, count) for cr, count in ((4, 4), (1, 15))),
    # Room for 128/(2·16) = 4 vectors of 16 bits, 64 bits in all: 2·8 + 12·4, three bits counted as four.
    *(("delta-come", (128, 128), 16, {"ladder": text}, n) for text, n in (("8x2,3x32,2", 14), ("16", 4), ("2", 32))),
    # 128·2/(2·3)/8 = 85.33 bits: 16 and 17 of four. 256 bits: 16, 32·4 and 56·2. And at least one.
    ("delta-come", (128, 64), 8, {"ladder": "8x2,3x32,2"}, 19),
    ("delta-come", (128, 128), 4, {"ladder": "8x2,3x32,2"}, 90),
    ("delta-come", (128, 128), 1000, {"ladder": "8x2,3x32,2"}, 1),
]


@pytest.mark.parametrize(("method", "shape", "cr", "options", "count"), PAPER, ids=str)
def test_under_the_papers_count_there_are_as_many_whole_vectors_as_their_bits_allow(
    method: str, shape: tuple[int, int], cr: float, options: dict[str, Any], count: int
) -> None:
    request = request_of(method, cr, accounting="paper", options=options)
    codes = encode(Projection.of(decaying_delta(*shape), "w"), request)
    assert len(codes["sigma"]) == METHODS.get(method).needed_rank(*shape, request) == count
    assert nbytes(codes) <= METHODS.get(method).expected_bytes(*shape, request)
