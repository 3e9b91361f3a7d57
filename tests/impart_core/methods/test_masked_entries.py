"""DARE, DARE-Qt and BitDelta keep entries of the delta under one keep code: as many as fit, or as the paper counts."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.base.errors import TensorValueError
from impart_core.blocks.request import CompressConfig
from impart_core.codec.mask import mask_from_words, mask_key, mask_words
from impart_core.codec.parts import nbytes
from impart_core.delta.budget import budget_bytes
from impart_core.methods import METHODS
from impart_core.methods.base import Projection
from tests.impart_core.methods.requests import decode, encode, request_of, requests, where_known

pytestmark = pytest.mark.usefixtures("one_thread")

sides = st.integers(2, 60)
BITS: dict[str, int] = {"dare": 16, "bitdelta": 1}  # of each kept entry; of DARE-Qt an option


def bits_of(request: CompressConfig) -> int:
    return BITS.get(request.method) or request.options.model_dump()["bits"]


def kept_by(code: int, request: CompressConfig, m: int, n: int) -> int:
    """Return how many entries of a matrix named `w` a keep code keeps, all words at once."""
    words = mask_words(mask_key(request.seed, "w", "delta"), n, m)
    return int(mask_from_words(words, np.full(m, code, np.uint16)).sum())


def bytes_of(request: CompressConfig, kept: int, m: int) -> int:
    """Return the bytes of so many kept entries, counted out: the keep code, and values, signs or codes."""
    options, values = request.options.model_dump(), -(-kept * bits_of(request) // 8)
    if request.method == "bitdelta":
        return 2 + values + 4 * (m if options["per_row"] else 1)
    if request.method == "dare":
        return 2 + values
    groups = -(-kept // options["group_size"])
    return 2 + values + 2 * 4 + 2 * groups + -(-groups * options["bits"] // 8)  # layout, scales and zero points


@pytest.mark.parametrize("method", ["dare", "dare-qt", "bitdelta"])
@given(m=sides, n=sides, data=st.data())
@settings(max_examples=100, deadline=None)
def test_one_step_more_of_the_keep_code_would_not_fit_the_budget(
    method: str, m: int, n: int, data: st.DataObject
) -> None:
    options = where_known(method, solver="nearest", lossless=False)
    request = data.draw(requests(method, m, n, accounting="bytes", options=options))
    codes, budget = encode(Projection.of(torch.ones(m, n), "w"), request), budget_bytes(m, n, request.cr)
    whole = bytes_of(request, m * n, m)
    if method == "bitdelta" and whole - 2 <= budget:  # all have a sign, without a keep code
        assert (len(codes["keep"]), nbytes(codes)) == (0, whole - 2)
        return
    code = int(codes["keep"][0]) if len(codes["keep"]) else -1
    if code >= 0:
        assert nbytes(codes) == bytes_of(request, kept_by(code, request, m, n), m)
    assert nbytes(codes) <= budget
    assert code == 65535 or bytes_of(request, kept_by(code + 1, request, m, n), m) > budget


@pytest.mark.parametrize(
    ("method", "cr", "options"),
    [
        *(("dare", cr, {}) for cr in (1, 3, 4, 32)),
        *(("dare-qt", cr, {"bits": bits, "solver": "nearest"}) for cr in (4, 16, 64) for bits in (2, 4, 8)),
        *(("bitdelta", cr, {}) for cr in (16, 17, 32, 64, 128, 16 * 65536)),
    ],
)
def test_under_the_papers_count_the_keep_probability_is_that_of_the_bits(
    method: str, cr: float, options: dict[str, Any]
) -> None:
    request = request_of(method, cr, accounting="paper", options=options)
    keep = encode(Projection.of(torch.ones(20, 30), "w"), request)["keep"].tolist() or [65535]
    assert (keep[0] + 1) / 65536 == pytest.approx(min(1, 16 / (bits_of(request) * cr)), rel=0, abs=0.5 / 65536)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_the_highest_ratio_of_a_large_projection_is_what_the_steps_can_tell_from_nothing(bits: int) -> None:
    method, options = ("dare", {}) if bits == 16 else ("dare-qt", {"bits": bits})
    for accounting, steps in (("bytes", 32768), ("paper", 65536)):
        request = request_of(method, 1, accounting=accounting, options=options)
        assert METHODS.get(method).highest_cr(4096, 4096, request) == steps * 16 / bits


def test_at_the_highest_ratio_of_a_large_projection_dare_keeps_something() -> None:
    codes = encode(Projection.of(torch.ones(2048, 2048), "w"), request_of("dare", 32768))
    assert len(codes["values"]) > 0
    assert nbytes(codes) <= budget_bytes(2048, 2048, 32768)


@pytest.mark.parametrize(  # four, seven and sixteen bytes; the lowest step keeps about 16 entries
    ("method", "cr", "options"),
    [("dare", 2**19, {}), ("bitdelta", 2**21 / 7, {}), ("dare-qt", 2**17, {"solver": "nearest", "lossless": False})],
)
def test_where_not_even_the_lowest_step_fits_nothing_is_kept(method: str, cr: float, options: dict[str, Any]) -> None:
    request, projection = request_of(method, cr, options=options), Projection.of(torch.ones(1024, 1024), "w")
    codes = encode(projection, request)
    assert not any(code.numel() for part, code in codes.items() if part != "layout")
    assert not decode(codes, projection, request).any()


@pytest.mark.parametrize("method", ["dare", "dare-qt", "magnitude"])
def test_a_value_beyond_float16_is_refused_with_the_tensors_name(method: str) -> None:
    with pytest.raises(TensorValueError, match="'layer_w' reaches 70000"):
        encode(Projection.of(torch.full((16, 16), 7e4), "layer_w"), request_of(method, 8))
