"""Products of factors in the same bits on every machine."""

from hashlib import sha256
from typing import Any

import numpy as np
import pytest
import torch

from impart_core.methods import METHODS, Projection, terms
from impart_core.methods.terms import Terms
from tests.impart_core.pipeline import config_of, small_options
from tests.support import decaying_delta

ROUNDING = 2.0**-19  # of both factors to 21 bits of their largest entries, and of float32


def factors(pairs: int, m: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(pairs)
    falling = torch.logspace(0, -6, pairs)[:, None]
    return falling * torch.randn(pairs, m, generator=generator), torch.randn(pairs, n, generator=generator)


def as_integers(values: Any) -> Any:
    """Round to 23 bits of the largest: sums of 40 products are below 2^53."""
    unit = 2.0 ** (np.floor(np.log2(np.abs(values).max())) + 1 - 23)
    return np.rint(values.astype(np.float64) / unit).astype(np.int64), unit


def test_a_portable_product_is_that_of_integers() -> None:
    left, right = factors(40, 30, 50)
    (ours, low), (theirs, high) = as_integers(left.numpy()), as_integers(right.numpy())
    expected = ((ours.T @ theirs).astype(np.float64) * (low * high)).astype(np.float32)
    np.testing.assert_array_equal(Terms(right, left).portable().numpy(), expected)


@pytest.mark.parametrize("pairs", [1, 40, 1500])
def test_its_bits_depend_on_no_order(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = factors(pairs, 61, 47)
    order = torch.randperm(pairs, generator=torch.Generator().manual_seed(0))
    expected = Terms(right, left).portable()
    monkeypatch.setattr(terms, "_AT_ONCE", 100)
    assert torch.equal(Terms(right[order], left[order]).portable(), expected)
    if pairs > 1:  # those of a sum in float32 do
        assert not torch.equal(left[order].T @ right[order], left.T @ right)


def test_golden_bits() -> None:
    """Of factors that follow from whole numbers; a float32 product of these differs from processor to processor."""
    at = torch.arange(300 * 90)
    left, right = ((at * step % 7919 - 3959).reshape(300, 90).float() / 4099 for step in (6007, 104_729))
    found = Terms(right, left).portable().numpy().tobytes()
    assert sha256(found).hexdigest()[:16] == "515e0d64c94650d8"


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_sizes_do_not_matter(scale: float) -> None:
    left, right = factors(8, 20, 30)
    unit = 2.0 ** np.frexp(scale)[1] if scale else 0.0
    expected = Terms(right, left).portable() * unit
    assert torch.equal(Terms(right, left * unit).portable(), expected)
    assert Terms(torch.empty(0, 5), torch.empty(0, 4)).portable().tolist() == [[0.0] * 5] * 4


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_portable_delta(method: str) -> None:
    config = config_of(4.0, method=method, options=small_options(method))
    delta, name = decaying_delta(96, 80), "model.layers.0.mlp.up_proj.weight"
    codes = METHODS.get(method).encode(Projection.of(delta, name), config.projections)
    decoded = METHODS.get(method).decode(codes, name, (96, 80), 0)
    portable = METHODS.get(method).terms(codes, name, (96, 80), 0).portable()
    assert (portable.dtype, portable.shape) == (torch.float32, (96, 80))
    assert float((portable - decoded).abs().max()) <= ROUNDING * float(decoded.norm())
