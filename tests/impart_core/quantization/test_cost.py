"""Costs: the bytes of streams that are really packed, and Algorithm 3 as the reference's code runs it."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.methods.allocation import allocate
from impart_core.quantization.cost import StreamBytes, paper_alpha, paper_sparsity, stream_bytes
from impart_core.quantization.groups import Groups
from impart_core.quantization.ladder import Ladder
from impart_core.quantization.solve import quantize_matrix
from impart_core.quantization.streams import pack_matrices
from tests.impart_core.quantization.samples import factor_of
from tests.support import VECTORS

CASES: list[dict[str, Any]] = json.loads((VECTORS / "sparsity.json").read_text())["quant_sparsity"]
LADDERS = ["8x2,3x32,2", "8x1,3x2,2", "16x1,4", "3", "16", "4x1,4x1,8"]


@given(
    text=st.sampled_from(LADDERS),
    rows=st.integers(1, 9),
    columns=st.integers(1, 40),
    group_size=st.none() | st.integers(1, 45),
    keep=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
@settings(max_examples=80, deadline=None)
def test_bytes_are_those_of_the_streams(
    text: str, rows: int, columns: int, group_size: int | None, keep: float
) -> None:
    spans = Ladder.parse(text).spans(rows)
    weight, mask = factor_of(rows, columns, keep)
    parts = pack_matrices([quantize_matrix(weight, Groups(mask, spans, group_size), None, "w")], lossless=False)
    found = StreamBytes(*(parts[part].nbytes for part in ("codes", "scales", "zeros")))
    assert stream_bytes(spans, [int(mask[span.rows].sum()) for span in spans], group_size) == found
    assert found.total == sum(parts[part].nbytes for part in ("codes", "scales", "zeros"))


def test_a_whole_factor_of_the_papers_ladder_in_figures() -> None:
    spans = Ladder().spans(100)
    cost = stream_bytes(spans, [4096 * (span.stop - span.start) for span in spans], 128)
    assert cost.codes == 4096 * (2 * 8 + 32 * 3 + 66 * 2) // 8
    assert cost.scales == 100 * 32 * 2
    assert cost.zeros == 32 * (2 * 8 + 32 * 3 + 66 * 2) // 8


def test_a_stream_is_rounded_up_to_a_byte_once_and_groups_are_of_kept_entries() -> None:
    cost = stream_bytes(Ladder.parse("3").spans(5), [5], 2)
    # 15 bits of codes; three groups, the last of one entry, of 2 bytes and 3 bits each.
    assert (cost.codes, cost.scales, cost.zeros) == (2, 6, 2)
    assert stream_bytes(Ladder.parse("3").spans(5), [5], None) == StreamBytes(2, 2, 1)


def test_each_range_has_streams_and_groups_of_its_own() -> None:
    spans = Ladder.parse("8x1,3x1,16x1,2").spans(5)
    cost = stream_bytes(spans, [3, 0, 4, 5], 2)
    assert (cost.codes, cost.scales, cost.zeros) == (3 + 0 + 8 + 2, 2 * (2 + 0 + 0 + 3), 2 + 0 + 0 + 1)


def importance_of(case: dict[str, Any]) -> np.ndarray:
    i = np.arange(case["n"], dtype=np.float64)
    kinds = {"power": (i + 1) ** -0.6, "flat": 1 - 0.5 * i / case["n"], "exp": np.exp(-4 * i / case["n"])}
    return kinds[case["spectrum"]] ** case["C"]


@pytest.mark.parametrize(
    "case", CASES, ids=lambda c: f"{c['spectrum']}-{c['n']}-{c['target_alpha_qt']}-b{c['beta']}-C{c['C']}"
)
def test_the_sparsity_before_quantisation_is_the_references(case: dict[str, Any]) -> None:
    def drop_at(alpha: float) -> np.ndarray:
        return allocate(importance_of(case), case["n"], alpha, case["beta"])

    alpha = paper_alpha(drop_at, case["n"], case["target_alpha_qt"], case["beta"], Ladder())
    # Midpoints in float64 are the same numbers; p and their sum round a few times.
    assert alpha == pytest.approx(case["alpha"], rel=0, abs=1e-15)
    assert paper_sparsity(drop_at(alpha), case["n"], Ladder()) == pytest.approx(case["achieved_alpha_qt"], abs=1e-13)
    np.testing.assert_allclose(drop_at(alpha), case["p"], rtol=0, atol=1e-14)


def test_all_cases_of_the_reference_are_here() -> None:
    assert len(CASES) == 16


def test_the_papers_count_charges_four_bits_for_three_and_nothing_for_scales() -> None:
    nothing_dropped = np.zeros(40)
    assert paper_sparsity(nothing_dropped, 40, Ladder()) == 1 - (2 * 8 + 32 * 4 + 6 * 2) / 16 / 40
    assert paper_sparsity(nothing_dropped, 40, Ladder.parse("3")) == 1 - 4 / 16
    assert paper_sparsity(np.zeros(0), 40, Ladder()) == 1
    assert paper_sparsity(np.full(10, 0.5), 40, Ladder.parse("16")) == 1 - 5 / 40


def test_a_target_that_cannot_be_missed_gives_the_least_sparsity() -> None:
    alpha = paper_alpha(lambda a: allocate(np.linspace(1, 0.5, 64), 64, a, 0.5), 64, 0.1, 0.5, Ladder())
    assert 0.5 < alpha < 0.5001
