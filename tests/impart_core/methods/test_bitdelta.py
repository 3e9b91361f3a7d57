"""BitDelta: scales of rows, scales that a distillation found, and the mean over seeds."""

import numpy as np
import pytest
import torch

from impart_core.blocks.request import CompressConfig
from impart_core.codec.parts import Codes
from impart_core.methods.base import Projection
from impart_core.methods.bitdelta import BitDelta, BitDeltaOptions
from tests.impart_core.methods.codes import entry_mask, no_factors, same
from tests.impart_core.pipeline import config_of
from tests.support import decaying_delta

pytestmark = pytest.mark.usefixtures("one_thread")

METHOD = BitDelta()


def bitdelta(cr: float, seed: int = 0, accounting: str = "bytes", **options: bool) -> CompressConfig:
    return config_of(cr, method="bitdelta", seed=seed, accounting=accounting, options=options)


def encode(delta: torch.Tensor, config: CompressConfig, scales: torch.Tensor | None = None) -> Codes:
    m, n = delta.shape
    return METHOD.encode(Projection("w", (m, n), lambda: delta, no_factors, scales=scales), config)


def test_one_scale_is_a_way_to_make_room_where_scales_of_rows_count() -> None:
    assert BitDeltaOptions(per_row=True).more_room("bytes") == "set per_row to false"
    assert BitDeltaOptions(per_row=True).more_room("paper") is BitDeltaOptions().more_room("bytes") is None


@pytest.mark.parametrize("cr", [4, 20])
@pytest.mark.parametrize("per_row", [False, True])
def test_scales_of_a_distillation_are_stored_in_the_place_of_the_means(per_row: bool, cr: float) -> None:
    delta, config = decaying_delta(40, 200), bitdelta(cr, per_row=per_row, distil=True)
    usual = encode(delta, config)
    tuned = torch.linspace(0.5, 1, len(usual["scales"]))
    codes = encode(delta, config, scales=tuned)
    assert same(codes, {**usual, "scales": tuned})
    ratio = METHOD.decode(codes, "w", (40, 200), 0) / METHOD.decode(usual, "w", (40, 200), 0)
    expected = (tuned / usual["scales"])[:, None].expand(40, 200)
    keep = int(codes["keep"][0]) if len(codes["keep"]) else 65535
    kept = entry_mask(keep, (40, 200)) & (usual["scales"][:, None] > 0)
    torch.testing.assert_close(ratio[kept], expected[kept])
    with pytest.raises(ValueError, match="3 scales for 'w' instead of"):
        encode(delta, config, scales=torch.ones(3))


def test_over_seeds_the_mean_scale_is_that_of_all_entries() -> None:
    delta = decaying_delta(24, 32)
    scales = [float(encode(delta, bitdelta(64, seed, "paper"))["scales"]) / 4 for seed in range(256)]
    spread = np.std(scales) / 16
    assert np.mean(scales) == pytest.approx(float(delta.abs().mean()), abs=4 * spread)
    assert spread < 0.01 * np.mean(scales)
