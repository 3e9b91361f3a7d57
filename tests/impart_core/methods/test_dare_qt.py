"""DARE-Qt: DARE's mask at few bits, an exact budget, and what is kept over the keep probability."""

from typing import Any

import pytest
import torch

from impart_core.base.errors import CorruptArtifactError
from impart_core.codec.mask import keep_probability, mask_key, whole_mask
from impart_core.codec.parts import Codes, nbytes
from impart_core.delta.budget import budget_bytes
from impart_core.methods.base import Projection
from impart_core.methods.dare import Dare
from impart_core.methods.dare_qt import DareQt
from impart_core.quantization.grid import RowRange
from impart_core.quantization.groups import Groups
from tests.impart_core.pipeline import config_of
from tests.support import decaying_delta

pytestmark = pytest.mark.usefixtures("one_thread")

METHOD = DareQt()
NEAREST = {"solver": "nearest"}


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
