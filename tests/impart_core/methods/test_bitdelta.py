"""BitDelta: scales of rows, and the mean over seeds."""

import numpy as np
import pytest
import torch

from impart_core.blocks.request import CompressConfig
from impart_core.codec.parts import Codes
from impart_core.methods.base import Projection
from impart_core.methods.bitdelta import BitDelta, BitDeltaOptions
from tests.impart_core.methods.codes import no_factors
from tests.impart_core.pipeline import config_of
from tests.support import decaying_delta

METHOD = BitDelta()


def bitdelta(cr: float, seed: int = 0, accounting: str = "bytes", **options: bool) -> CompressConfig:
    return config_of(cr, method="bitdelta", seed=seed, accounting=accounting, options=options)


def encode(delta: torch.Tensor, config: CompressConfig) -> Codes:
    m, n = delta.shape
    return METHOD.encode(Projection("w", (m, n), lambda: delta, no_factors), config)


def test_one_scale_is_a_way_to_make_room_where_scales_of_rows_count() -> None:
    assert BitDeltaOptions(per_row=True).more_room("bytes") == "set per_row to false"
    assert BitDeltaOptions(per_row=True).more_room("paper") is BitDeltaOptions().more_room("bytes") is None


def test_over_seeds_the_mean_scale_is_that_of_all_entries() -> None:
    delta = decaying_delta(24, 32)
    scales = [float(encode(delta, bitdelta(64, seed, "paper"))["scales"]) / 4 for seed in range(256)]
    spread = np.std(scales) / 16
    assert np.mean(scales) == pytest.approx(float(delta.abs().mean()), abs=4 * spread)
    assert spread < 0.01 * np.mean(scales)
