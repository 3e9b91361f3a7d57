"""DARE-Qt: DARE's mask at few bits, an exact budget, and what is kept over the keep probability."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.base.errors import CorruptArtifactError, TensorValueError
from impart_core.codec.mask import keep_probability, mask_key, whole_mask
from impart_core.codec.parts import Codes, nbytes
from impart_core.delta.budget import budget_bytes
from impart_core.methods.base import Projection
from impart_core.methods.dare import Dare
from impart_core.methods.dare_qt import DareQt
from impart_core.quantize.grid import RowRange
from impart_core.quantize.groups import Groups
from tests.impart_core.methods.codes import digest
from tests.impart_core.pipeline import config_of
from tests.support import decaying_delta

pytestmark = pytest.mark.usefixtures("one_thread")

METHOD = DareQt()
NEAREST = {"solver": "nearest"}
sides = st.integers(2, 40)
widths = st.sampled_from([2, 4, 8])


def encoded(delta: torch.Tensor, cr: float = 16, name: str = "w", **settings_: Any) -> Codes:
    return METHOD.encode(Projection.of(delta, name), config_of(cr, method="dare-qt", **settings_))


def mask_of(codes: Codes, name: str, m: int, n: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(whole_mask(mask_key(seed, name, "delta"), n, m, codes["keep"].numpy()))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("lossless", [False, True])
def test_what_is_decoded_is_the_nearest_of_each_groups_grid_over_the_keep_probability(
    bits: Any, lossless: bool
) -> None:
    delta = decaying_delta(48, 80)
    codes = encoded(delta, 16, "layer.w", seed=9, options={**NEAREST, "bits": bits, "lossless": lossless})
    assert codes["keep"].dtype == torch.uint16
    assert codes["layout"].tolist() == [128, int(lossless), bits, 48]
    mask, probability = mask_of(codes, "layer.w", 48, 80, 9), float(keep_probability(codes["keep"].numpy())[0])
    groups = Groups(mask, (RowRange(0, 48, bits),), 128)
    grid = groups.entries(*groups.fit(delta))
    expected = torch.where(mask, grid.values(grid.nearest(delta)), 0.0) / probability
    assert 0 < int(mask.sum()) < 48 * 80
    assert torch.equal(METHOD.decode(codes, "layer.w", (48, 80), 9), expected)


@pytest.mark.parametrize("rows", [65535, 65536, 131071])
@pytest.mark.parametrize("lossless", [True, False])
def test_rows_beyond_what_a_layout_can_count_are_in_several_ranges(rows: int, lossless: bool) -> None:
    delta = torch.randn(rows, 4, generator=torch.Generator().manual_seed(rows)) / 100
    options = {**NEAREST, "bits": 2, "lossless": lossless}
    config = config_of(16, method="dare-qt", options=options)
    codes = METHOD.encode(Projection.of(delta, "w"), config)
    assert codes["layout"].tolist()[3::2] == [min(65535, rows - first) for first in range(0, rows, 65535)]
    assert 0.98 * budget_bytes(rows, 4, 16) <= nbytes(codes) <= budget_bytes(rows, 4, 16)
    found = METHOD.decode(codes, "w", (rows, 4), 0)
    mask = mask_of(codes, "w", rows, 4, 0)
    assert torch.equal(found != 0, mask & (found != 0))
    assert torch.nn.functional.cosine_similarity(found[mask], delta[mask], dim=0) > 0.8


def test_a_value_beyond_float16_is_refused_with_the_tensors_name() -> None:
    with pytest.raises(TensorValueError, match="'layer_w' reaches 70000"):
        encoded(torch.full((16, 16), 7e4), 8, "layer_w", options=NEAREST)


@given(
    m=sides,
    n=sides,
    cr=st.floats(1, 60),
    seed=st.integers(0, 50),
    bits=widths,
    size=st.sampled_from([1, 16, 128]),
)
@settings(max_examples=100, deadline=None)
def test_one_step_more_would_not_fit_the_budget(m: int, n: int, cr: float, seed: int, bits: int, size: int) -> None:
    options = {**NEAREST, "bits": bits, "group_size": size, "lossless": False}
    config = config_of(cr, method="dare-qt", seed=seed, options=options)
    if cr > METHOD.highest_cr(m, n, config):
        return
    codes = METHOD.encode(Projection.of(torch.ones(m, n), "w"), config)
    kept = int(mask_of(codes, "w", m, n, seed).sum()) if len(codes["keep"]) else 0
    budget = budget_bytes(m, n, cr)
    assert nbytes(codes) == bytes_of(kept, bits, size) - (0 if len(codes["keep"]) else 2)
    assert nbytes(codes) <= budget
    if len(codes["keep"]) and int(codes["keep"]) < 65535:
        more = {"keep": torch.from_numpy(codes["keep"].numpy() + np.uint16(1))}
        assert bytes_of(int(mask_of(more, "w", m, n, seed).sum()), bits, size) > budget


def bytes_of(kept: int, bits: int, size: int) -> int:
    """Return the bytes of so many kept entries, counted out: keep, layout, codes, scales and zero points."""
    groups = -(-kept // size)
    return 2 + 2 * 4 + -(-kept * bits // 8) + 2 * groups + -(-groups * bits // 8)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("cr", [4, 16, 64])
def test_under_the_papers_count_the_keep_probability_is_that_of_the_bits(cr: float, bits: int) -> None:
    codes = encoded(decaying_delta(24, 32), cr, accounting="paper", options={**NEAREST, "bits": bits})
    found = float(keep_probability(codes["keep"].numpy())[0])
    assert found == pytest.approx(min(1, 16 / (bits * cr)), abs=0.5 / 65536)


def test_fewer_bits_keep_more_entries() -> None:
    kept = [int(encoded(decaying_delta(96, 96), 16, options={**NEAREST, "bits": bits})["keep"]) for bits in (2, 4, 8)]
    assert kept[0] > 1.7 * kept[1] > 2.9 * kept[2]


def test_the_mask_is_dares() -> None:
    codes = encoded(torch.ones(48, 80), 8, accounting="paper", seed=4, options=NEAREST)
    dare = config_of(2, method="dare", accounting="paper", seed=4)  # as many entries at 16 bits
    theirs = Dare().encode(Projection.of(torch.ones(48, 80), "w"), dare)
    assert torch.equal(codes["keep"], theirs["keep"])
    found = METHOD.decode(codes, "w", (48, 80), 4)
    expected = Dare().decode(theirs, "w", (48, 80), 4)
    assert torch.equal(found != 0, expected != 0)
    torch.testing.assert_close(found, expected, rtol=2**-10, atol=0)  # ones on a grid whose step is rounded up


@given(m=sides, n=sides, seed=st.integers(0, 50), bits=widths)
@settings(max_examples=60, deadline=None)
def test_the_highest_ratio_has_room_for_one_entry_and_any_higher_one_for_none(
    m: int, n: int, seed: int, bits: int
) -> None:
    options = {**NEAREST, "bits": bits, "lossless": False}
    highest = METHOD.highest_cr(m, n, config_of(1, method="dare-qt", options=options))
    if highest < 1:
        return
    codes = encoded(torch.ones(m, n), highest, seed=seed, options=options)
    assert nbytes(codes) <= budget_bytes(m, n, highest) == bytes_of(1, bits, 128)
    assert int((METHOD.decode(codes, "w", (m, n), seed) != 0).sum()) <= 8 // bits  # as many as share a byte
    assert budget_bytes(m, n, np.nextafter(highest, np.inf)) < bytes_of(1, bits, 128)


def test_the_highest_ratio_of_a_large_projection_is_what_the_steps_can_tell_from_nothing() -> None:
    for bits in (2, 4, 8):
        options = {"bits": bits}
        assert METHOD.highest_cr(4096, 4096, config_of(1, method="dare-qt", options=options)) == 32768 * 16 / bits
        paper = config_of(1, method="dare-qt", accounting="paper", options=options)
        assert METHOD.highest_cr(4096, 4096, paper) == 65536 * 16 / bits


def test_where_not_even_the_lowest_step_fits_nothing_is_kept() -> None:
    codes = encoded(torch.ones(1024, 1024), 2**16, options=NEAREST)  # 32 bytes; the lowest step keeps about 16 entries
    assert len(codes["keep"]) <= 1
    codes = encoded(torch.ones(1024, 1024), 2**17, options={**NEAREST, "lossless": False})
    assert {part: code.numel() for part, code in codes.items()} == {
        "keep": 0,
        "layout": 4,
        "scales": 0,
        "zeros": 0,
        "codes": 0,
    }
    assert not METHOD.decode(codes, "w", (1024, 1024), 0).any()


def test_where_all_entries_fit_all_are_kept() -> None:
    delta = decaying_delta(24, 32)
    codes = encoded(delta, 1.5, options={**NEAREST, "bits": 8, "lossless": False})
    assert codes["keep"].tolist() == [65535]
    steps = torch.zeros(24, 32)
    steps.view(-1)[:] = codes["scales"].float().repeat_interleave(128)[: 24 * 32]
    found = METHOD.decode(codes, "w", (24, 32), 0)
    assert bool(((found - delta).abs() <= 0.5 * steps * (1 + 2**-13)).all())


@pytest.mark.parametrize("keep", [0, 65535])
def test_another_keep_code_than_the_codes_were_made_with_is_refused_by_name(keep: int) -> None:
    codes = encoded(decaying_delta(48, 80), 16, options=NEAREST)
    with pytest.raises(CorruptArtifactError, match="'w'"):
        METHOD.decode({**codes, "keep": torch.tensor([keep], dtype=torch.uint16)}, "w", (48, 80), 0)


@pytest.mark.parametrize(("accounting", "expected"), [("bytes", "d5d94b5685325496"), ("paper", "b15355478be4ee3c")])
def test_golden_codes(accounting: str, expected: str) -> None:
    """These are pinned: a change here must raise the method's version, as published blocks are found by it."""
    delta = ((37 * torch.arange(48)[:, None] + 101 * torch.arange(80)) % 97 - 48).float() / 256
    codes = encoded(delta, 16, "layer.w", seed=7, accounting=accounting, options={**NEAREST, "lossless": False})
    assert METHOD.version == 2
    assert digest(codes) == expected
