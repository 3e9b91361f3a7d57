"""DARE, DARE-Qt and BitDelta keep entries of the delta under one keep code: as many as fit, or as the paper counts.

DARE has nothing beyond this.
"""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.base.errors import TensorValueError
from impart_core.blocks.request import CompressConfig
from impart_core.codec.half import half_exponent
from impart_core.codec.parts import nbytes
from impart_core.delta.budget import budget_bytes
from impart_core.methods import METHODS
from impart_core.methods.base import Projection
from impart_core.quantization.grid import RowRange
from impart_core.quantization.groups import Groups
from tests.impart_core.methods.codes import at_16_bits, entry_mask
from tests.impart_core.methods.requests import decode, encode, is_feasible, request_of, requests, where_known
from tests.support import decaying_delta

sides = st.integers(2, 60)
accountings = pytest.mark.parametrize("accounting", ["bytes", "paper"])
BITS: dict[str, int] = {"dare": 16, "bitdelta": 1}  # of each kept entry; of DARE-Qt an option


def bits_of(request: CompressConfig) -> int:
    return BITS.get(request.method) or request.options.model_dump()["bits"]


def kept_by(code: int, request: CompressConfig, m: int, n: int) -> int:
    """Return how many entries of a matrix named `w` a keep code keeps."""
    return int(entry_mask(code, (m, n), request.seed).sum())


def bytes_of(request: CompressConfig, kept: int, m: int) -> int:
    """Return the bytes of so many kept entries, counted out: keep code, exponent, and values, signs or codes."""
    options, values = request.options.model_dump(), -(-kept * bits_of(request) // 8)
    if request.method == "bitdelta":
        return 2 + values + 4 * (m if options["per_row"] else 1)
    if request.method == "dare":
        return 2 + 1 + values
    groups = -(-kept // options["group_size"])
    return 2 + 1 + values + 2 * 4 + 2 * groups + -(-groups * options["bits"] // 8)  # layout, scales and zero points


@pytest.mark.parametrize("method", ["dare", "dare-qt", "bitdelta"])
@given(m=sides, n=sides, data=st.data())
@settings(max_examples=100, deadline=None)
def test_one_step_more_of_the_keep_code_would_not_fit_the_budget(
    method: str, m: int, n: int, data: st.DataObject
) -> None:
    options = where_known(method, solver="nearest", lossless=False)
    request = data.draw(requests(method, m, n, accounting="bytes", options=options))
    codes, budget = encode(Projection.of(torch.full((m, n), 0.5), "w"), request), budget_bytes(m, n, request.cr)
    whole = bytes_of(request, m * n, m)
    if method == "bitdelta" and whole - 2 <= budget:  # all have a sign, without a keep code
        assert (len(codes["keep"]), nbytes(codes)) == (0, whole - 2)
        return
    code = int(codes["keep"][0]) if len(codes["keep"]) else -1
    if code >= 0:
        no_exponent = method != "bitdelta" and "exponent" not in codes  # where no entry is kept
        assert nbytes(codes) + no_exponent == bytes_of(request, kept_by(code, request, m, n), m)
    assert nbytes(codes) <= budget
    assert code == 65535 or bytes_of(request, kept_by(code + 1, request, m, n), m) > budget


@pytest.mark.parametrize(
    ("method", "cr", "options"),
    [
        *(("dare", cr, {}) for cr in (1, 3, 4, 32)),
        *(("dare-qt", cr, {"bits": bits, "solver": "nearest"}) for cr in (4, 16, 64) for bits in (2, 4, 8)),
        *(("bitdelta", cr, {}) for cr in (1, 16, 17, 32, 64, 128, 16 * 65536)),
    ],
)
def test_under_the_papers_count_the_keep_probability_is_that_of_the_bits(
    method: str, cr: float, options: dict[str, Any]
) -> None:
    request = request_of(method, cr, accounting="paper", options=options)
    keep = encode(Projection.of(torch.ones(20, 30), "w"), request)["keep"].tolist() or [65535]
    assert (keep[0] + 1) / 65536 == pytest.approx(min(1, 16 / (bits_of(request) * cr)), rel=0, abs=0.5 / 65536)


def stored_entries(delta: torch.Tensor, mask: torch.Tensor, request: CompressConfig) -> torch.Tensor:
    """Return what kept entries are stored as: at 16 bits, as their sign and mean, or the nearest of their grid."""
    options = request.options.model_dump()
    if request.method == "dare":
        return at_16_bits(torch.where(mask, delta, 0.0)).double()
    if request.method == "dare-qt":
        groups = Groups(mask, (RowRange(0, len(mask), options["bits"]),), options["group_size"])
        exponent = half_exponent(delta[mask], "w")
        scaled = delta * 2.0**-exponent
        grid = groups.entries(*groups.fit(scaled))
        return grid.values(grid.nearest(scaled)).double() * 2.0**exponent
    axis = 1 if options["per_row"] else (0, 1)
    magnitudes = torch.where(mask, delta.double().abs(), 0.0).sum(axis, keepdim=True)
    return delta.sign().double() * magnitudes / mask.sum(axis, keepdim=True).clamp(min=1)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("dare", {}),
        *(("bitdelta", {"per_row": per_row}) for per_row in (False, True)),
        *(("dare-qt", {"bits": bits, "lossless": lossless}) for bits in (2, 4, 8) for lossless in (False, True)),
    ],
    ids=str,
)
@accountings
@pytest.mark.parametrize("cr", [1, 4, 16, 40])
@pytest.mark.parametrize("shape", [(48, 80), (2, 700), (90, 25)])
def test_what_is_decoded_are_the_kept_entries_as_they_are_stored_over_the_keep_probability(
    method: str, options: dict[str, Any], accounting: str, cr: float, shape: tuple[int, int]
) -> None:
    request = request_of(method, cr, seed=9, accounting=accounting, options=options)
    if not is_feasible(request, *shape):
        assert cr >= 16 and options["per_row"]  # scales take the room of signs
        return
    projection = Projection.of(decaying_delta(*shape), "layer.w")
    codes = encode(projection, request)
    code = int(codes["keep"][0]) if len(codes["keep"]) else 65535
    mask = entry_mask(code, shape, 9, "layer.w")
    expected = torch.where(mask, stored_entries(projection.delta(), mask, request), 0.0) * 65536 / (code + 1)
    found = decode(codes, projection, request).double()
    assert mask.any()
    torch.testing.assert_close(found, expected, rtol=2**-22, atol=0)  # one cast and one division in float32


LARGE: list[tuple[str, dict[str, Any], float, float]] = [
    # What the steps of 1/65536 can tell from nothing.
    ("dare", {}, 32768, 65536),
    *(("dare-qt", {"bits": bits}, 32768 * 16 / bits, 65536 * 16 / bits) for bits in (2, 4, 8)),
    # Room for what the lowest step keeps: 256 and six standard deviations.
    ("bitdelta", {}, 2 * 4096**2 / (4 + 2 + (256 + 6 * 16) / 8), 16 * 65536),
    ("bitdelta", {"per_row": True}, 2 * 4096**2 / (4 * 4096 + 2 + (256 + 6 * 16) / 8), 16 * 65536),
]


@pytest.mark.parametrize(("method", "options", "of_bytes", "of_paper"), LARGE, ids=str)
def test_the_highest_ratio_of_a_large_projection(
    method: str, options: dict[str, Any], of_bytes: float, of_paper: float
) -> None:
    for accounting, expected in (("bytes", of_bytes), ("paper", of_paper)):
        request = request_of(method, 1, accounting=accounting, options=options)
        assert METHODS.get(method).highest_cr(4096, 4096, request) == pytest.approx(expected)


@pytest.mark.parametrize(("method", "side"), [("dare", 2048), ("bitdelta", 1024)])
def test_at_the_highest_ratio_of_a_large_projection_something_is_kept(method: str, side: int) -> None:
    highest = METHODS.get(method).highest_cr(side, side, request_of(method, 1))
    for seed in range(3):
        codes = encode(Projection.of(torch.ones(side, side), "w"), request_of(method, highest, seed=seed))
        assert len(codes["values" if method == "dare" else "signs"]) > 0
        assert nbytes(codes) <= budget_bytes(side, side, highest)


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
@pytest.mark.parametrize("size", [1e-20, 1e-9, 1e9, 1e30])
def test_deltas_of_any_size_are_stored_as_well_as_those_that_float16_is_made_for(method: str, size: float) -> None:
    exponent = round(np.log2(size))
    delta, request = decaying_delta(64, 64), request_of(method, 8)
    ordinary, found = (
        decode(encode(projection, request), projection, request)
        for projection in (Projection.of(delta, "w"), Projection.of(delta * 2.0**exponent, "w"))
    )
    assert torch.equal(found, ordinary * 2.0**exponent)
    assert found.any()


@pytest.mark.parametrize("method", ["dare", "dare-qt", "magnitude"])
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_delta_that_is_not_finite_is_refused_with_the_tensors_name(method: str, value: float) -> None:
    with pytest.raises(TensorValueError, match="'layer_w' holds NaN or infinity"):
        encode(Projection.of(torch.full((16, 16), value), "layer_w"), request_of(method, 8))


@pytest.mark.parametrize("rows", [65535, 65536, 131071])
@pytest.mark.parametrize("lossless", [True, False])
def test_rows_of_dare_qt_beyond_what_a_layout_can_count_are_in_several_ranges(rows: int, lossless: bool) -> None:
    delta = torch.randn(rows, 4, generator=torch.Generator().manual_seed(rows)) / 100
    options = {"bits": 2, "lossless": lossless}
    request, projection = request_of("dare-qt", 16, options=options), Projection.of(delta, "w")
    codes = encode(projection, request)
    assert codes["layout"].tolist()[3::2] == [min(65535, rows - first) for first in range(0, rows, 65535)]
    assert 0.98 * budget_bytes(rows, 4, 16) <= nbytes(codes) <= budget_bytes(rows, 4, 16)
    found, mask = decode(codes, projection, request), entry_mask(int(codes["keep"]), (rows, 4))
    assert torch.equal(found != 0, mask & (found != 0))
    assert torch.nn.functional.cosine_similarity(found[mask], delta[mask], dim=0) > 0.8
