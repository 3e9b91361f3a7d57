"""What every method promises of gains: they multiply what is stored, in as many bytes, and 1 changes nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.codec.half import EXPONENT, decode_half, encode_half, scaled_half
from impart_core.codec.parts import Codes, nbytes
from impart_core.methods import METHODS
from impart_core.methods.base import Projection
from impart_core.methods.terms import Terms
from tests.impart_core.methods.requests import KINDS, delta_of, encode, request_of, requests
from tests.pretend_device import PRETEND
from tests.support import decaying_delta

M, N = 24, 32
# Relative, of a number as it is stored: bfloat16 and float16 are rounded twice, ecsq's scales are 2^(1/16) apart.
ROUNDING = {"ecsq": 0.025, "delta-come": 2**-8, "impart-qt": 2**-8, "dare-qt": 2**-9, "dare": 2**-9, "magnitude": 2**-9}
methods = pytest.mark.parametrize("method", METHODS)


def shapes_of(codes: Codes) -> dict[str, tuple[torch.dtype, torch.Size]]:
    return {part: (code.dtype, code.shape) for part, code in codes.items()}


@methods
@given(kind=st.sampled_from(KINDS), data=st.data())
@settings(max_examples=30, deadline=None)
def test_gains_multiply_the_decoded_delta_and_what_is_stored_of_it(method: str, kind: str, data: st.DataObject) -> None:
    request = data.draw(requests(method, M, N))
    coder, seed = METHODS.get(method), request.seed
    codes = encode(Projection.of(delta_of(kind, M, N, seed), "w"), request)
    decoded = coder.decode(codes, "w", (M, N), seed)
    terms = coder.terms(codes, "w", (M, N), seed)
    if not terms.count:
        assert not decoded.any()
        return
    assert torch.equal(terms.at(torch.ones(terms.count)), decoded)
    gains = torch.rand(terms.count, generator=torch.Generator().manual_seed(seed)) + 0.5
    wanted, scaled = terms.at(gains), coder.scaled(codes, "w", (M, N), gains)
    assert shapes_of(scaled) == shapes_of(codes)
    assert nbytes(scaled) == nbytes(codes)
    found = coder.decode(scaled, "w", (M, N), seed)
    room = (ROUNDING.get(method, 2**-20)) * float(_sum_of_magnitudes(terms, gains).max()) + 1e-30
    assert float((found - wanted).abs().max()) <= room
    coder.check_codes(scaled, "w", (M, N), seed)


def _sum_of_magnitudes(terms: Terms, gains: torch.Tensor) -> torch.Tensor:
    """Return what rounding is relative to: products of vectors may cancel."""
    left = terms.left.abs() if terms.left is not None else None
    return Terms(terms.right.abs(), left, terms.per_row).at(gains)


@methods
def test_a_delta_is_differentiable_in_gains_on_any_device(method: str) -> None:
    request = request_of(method, 8)
    coder = METHODS.get(method)
    terms = coder.terms(encode(Projection.of(decaying_delta(M, N), "w"), request), "w", (M, N), 0)
    gradients = []
    for device in (torch.device("cpu"), PRETEND):
        gains = torch.full((terms.count,), 1.25).to(device).requires_grad_()
        weight = torch.linspace(-1, 1, M * N).reshape(M, N).to(device)
        with torch.autograd.set_multithreading_enabled(False):
            (gradient,) = torch.autograd.grad((terms.held(device)(gains) * weight).sum(), gains)
        gradients.append(gradient.cpu())
    assert bool(gradients[0].any())
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("filled", [0.05, 0.5])
@pytest.mark.parametrize("levels", [3, 100_000])
@pytest.mark.parametrize("per_row", [False, True])
def test_a_matrix_is_held_exactly_however_it_is_held(filled: float, levels: int, per_row: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-levels, levels + 1, (64, 160), generator=generator) * 1e-3
    matrix = torch.where(torch.rand(64, 160, generator=generator) < filled, values, 0.0)
    matrix *= torch.rand(64, 1, generator=generator) if per_row else 1.0
    terms = Terms(matrix, per_row=per_row)
    assert terms.count == (64 if per_row else 1)
    assert torch.equal(terms.at(torch.ones(terms.count)), matrix)


@pytest.mark.parametrize("largest", [1e-7, 0.5, 1.0, 6e4])
@pytest.mark.parametrize("gain", [1.0, 0.3, 3.0])
def test_values_at_16_bits_are_scaled_in_as_many_bytes_whatever_their_exponent(largest: float, gain: float) -> None:
    codes = encode_half(torch.tensor([largest, -largest / 3, 0.0]), "values", "w")
    scaled = scaled_half(codes, "values", "w", torch.tensor([gain]))
    assert shapes_of(scaled) == shapes_of(codes)
    most = torch.finfo(torch.float16).max if EXPONENT not in codes else torch.inf
    wanted = (decode_half(codes["values"], codes, "w") * gain).clamp(-most, most)
    torch.testing.assert_close(decode_half(scaled["values"], scaled, "w"), wanted, rtol=2**-11, atol=0)
    if gain == 1:
        assert all(torch.equal(scaled[part], codes[part]) for part in codes)
