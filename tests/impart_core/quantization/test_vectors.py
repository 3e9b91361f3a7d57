"""Quantised singular vectors: exact bytes, the side of the inputs first, and outputs that differ less for it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.base.errors import CorruptArtifactError
from impart_core.codec.parts import Codes, nbytes
from impart_core.delta.svd import decompose
from impart_core.quantization.curvature import Inputs
from impart_core.quantization.options import LadderOptions
from impart_core.quantization.streams import unpack_matrices
from impart_core.quantization.vectors import decode_vectors, encode_vectors, vectors_bytes
from tests.impart_core.methods.codes import same
from tests.impart_core.quantization.plain import output_error
from tests.impart_core.quantization.samples import factor_of, hessian_of
from tests.support import decaying_delta

Masks = tuple[torch.Tensor, torch.Tensor]
LADDERS = ["8x2,3x4,2", "16x1,8x1,4", "16", "8", "2", "4x1,2x3,8"]


def options_of(ladder: str = "8x2,3x4,2", **settings_: object) -> LadderOptions:
    return LadderOptions(ladder=ladder, group_size=32, **settings_)


def product(codes: Codes, name: str, weights: torch.Tensor, masks: Masks) -> torch.Tensor:
    """Return the matrix that codes decode to, (m, n)."""
    u, v = decode_vectors(codes, name, weights, masks)
    return u.T @ v


def sides_of(m: int, n: int, count: int, keep: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Masks]:
    """Return the leading vectors of a delta as rows, their weights, and masks that keep so much of them."""
    factors = decompose(decaying_delta(m, n), "w")
    masks = factor_of(count, m, keep)[1], factor_of(count, n, keep, seed=1)[1]
    return factors.u[:count], factors.v[:count], factors.sigma[:count], masks


@given(
    m=st.integers(2, 30),
    n=st.integers(2, 30),
    ladder=st.sampled_from(LADDERS),
    keep=st.sampled_from([0.0, 0.3, 1.0]),
    lossless=st.booleans(),
    data=st.data(),
)
@settings(max_examples=80, deadline=None)
def test_bytes_are_exactly_those_counted_before_the_lossless_stage(
    m: int, n: int, ladder: str, keep: float, lossless: bool, data: st.DataObject
) -> None:
    u, v, weights, masks = sides_of(m, n, data.draw(st.integers(1, min(m, n))), keep)
    options = options_of(ladder, lossless=lossless)
    codes = encode_vectors(u, v, weights, masks, None, "w", options)
    kept = [mask.sum(dim=1).numpy().astype(np.int64) for mask in masks]
    counted = vectors_bytes(kept[0], kept[1], options)
    assert nbytes(codes) == counted or (lossless and nbytes(codes) < counted)
    assert product(codes, "w", weights, masks).shape == (m, n)


@pytest.mark.parametrize("keep", [0.4, 1.0])
@pytest.mark.parametrize("lossless", [False, True])
def test_what_is_decoded_is_the_weighted_sum_of_the_stored_pairs(keep: float, lossless: bool) -> None:
    u, v, weights, masks = sides_of(24, 40, 10, keep)
    codes = encode_vectors(u, v, weights, masks, None, "w", options_of(lossless=lossless))
    stored = [values.double() for values in unpack_matrices(codes, "w", masks)]
    expected = sum(w * torch.outer(a, b) for w, a, b in zip(weights.double(), *stored, strict=True))
    found = product(codes, "w", weights, masks)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5 * float(found.abs().max()))
    for values, vectors, mask in zip(stored, (u, v), masks, strict=True):
        assert not values[~mask].any()
        assert torch.dist(values[0][mask[0]], vectors[0][mask[0]].double()) < 0.02 * torch.norm(vectors[0])  # 8 bits


def test_at_16_bits_it_is_the_product_of_float16_vectors() -> None:
    u, v, weights, masks = sides_of(24, 40, 10, 0.5)
    codes = encode_vectors(u, v, weights, masks, None, "w", options_of("16"))
    # The second side makes up for what 16 bits took of the first: by a few steps of float16, 2⁻¹¹.
    for found, vectors, mask in zip(unpack_matrices(codes, "w", masks), (u, v), masks, strict=True):
        kept = torch.where(mask, vectors, 0.0)
        torch.testing.assert_close(found, kept, rtol=0, atol=float(2**-9 * vectors.abs().max()))
    assert torch.equal(unpack_matrices(codes, "w", masks)[1], torch.where(masks[1], v, 0.0).half().float())


@pytest.mark.parametrize("solver", ["support", "masked", "nearest"])
@pytest.mark.parametrize("keep", [0.5, 1.0])
def test_inputs_of_rows_are_the_transposed_problem(solver: str, keep: float) -> None:
    u, v, weights, masks = sides_of(24, 40, 10, keep)
    hessian, options = hessian_of("correlated", 24), options_of(solver=solver, lossless=False)
    of_rows = encode_vectors(u, v, weights, masks, Inputs(hessian, of_rows=True), "w", options)
    turned = (masks[1], masks[0])
    of_columns = encode_vectors(v, u, weights, turned, Inputs(hessian), "w", options)
    found = product(of_rows, "w", weights, masks)
    expected = product(of_columns, "w", weights, turned).T
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))  # a sum's order


def error_of(codes: Codes, weights: torch.Tensor, masks: Masks, whole: torch.Tensor, inputs: Inputs) -> float:
    change = whole - product(codes, "w", weights, masks)
    return output_error(change.T if inputs.of_rows else change, torch.zeros(1), inputs.hessian)


@pytest.mark.parametrize("of_rows", [False, True])
@pytest.mark.parametrize("keep", [0.5, 1.0])
def test_outputs_differ_less_than_with_rounding_to_the_nearest(keep: float, of_rows: bool) -> None:
    u, v, weights, masks = sides_of(64, 96, 24, keep)
    inputs = Inputs(hessian_of("correlated", 64 if of_rows else 96), of_rows)
    whole = (torch.where(masks[0], u, 0.0) * weights[:, None]).T @ torch.where(masks[1], v, 0.0)
    errors = {}
    for solver in ("support", "nearest"):
        codes = encode_vectors(u, v, weights, masks, inputs, "w", options_of("3", solver=solver))
        errors[solver] = error_of(codes, weights, masks, whole, inputs)
    unknown = encode_vectors(u, v, weights, masks, None, "w", options_of("3"))
    assert errors["support"] < 0.7 * errors["nearest"]
    assert errors["support"] < error_of(unknown, weights, masks, whole, inputs)


def test_the_second_side_makes_up_for_the_first_as_it_was_stored() -> None:
    """With u alone at 2 bits and v exact, u is worked out for the v that was stored: without inputs, white ones."""
    u, v, weights, masks = sides_of(48, 64, 12)
    noisy = encode_vectors(u, v, weights, masks, None, "w", options_of("2"))
    nearest = encode_vectors(u, v, weights, masks, None, "w", options_of("2", solver="nearest"))
    (u_found, v_found), (u_nearest, v_nearest) = (unpack_matrices(codes, "w", masks) for codes in (noisy, nearest))
    assert torch.equal(v_found, v_nearest)
    wanted = (u * weights[:, None]).T @ v_found
    errors = [torch.dist((side * weights[:, None]).T @ v_found, wanted) for side in (u_found, u_nearest)]
    assert errors[0] < errors[1]


def test_the_same_factors_give_the_same_parts_each_time() -> None:
    u, v, weights, masks = sides_of(24, 40, 10, 0.5)
    inputs = Inputs(hessian_of("correlated", 40))
    first, second = (encode_vectors(u, v, weights, masks, inputs, "w", options_of()) for _ in range(2))
    assert same(first, second)


def test_parts_of_other_factors_are_refused_by_name() -> None:
    u, v, weights, masks = sides_of(24, 40, 10, 0.5)
    codes = encode_vectors(u, v, weights, masks, None, "w", options_of())
    for other in ((masks[0][:9], masks[1][:9]), (masks[1], masks[0]), (~masks[0], masks[1])):
        with pytest.raises(CorruptArtifactError, match=r"'layer\.w'"):
            product(codes, "layer.w", weights[: len(other[0])], other)
