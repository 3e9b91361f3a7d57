"""DARE: an exact budget, a regenerated mask, and no bias."""

import numpy as np
import numpy.typing as npt
import pytest
import torch

from impart_core.blocks.request import CompressConfig
from impart_core.codec.mask import keep_probability, mask_from_words, mask_key, mask_words
from impart_core.codec.parts import Codes
from impart_core.methods.base import Projection
from impart_core.methods.dare import Dare
from tests.impart_core.pipeline import config_of
from tests.support import decaying_delta

METHOD = Dare()
accountings = pytest.mark.parametrize("accounting", ["bytes", "paper"])


def dare(cr: float, seed: int = 0, accounting: str = "bytes") -> CompressConfig:
    return config_of(cr, method="dare", seed=seed, accounting=accounting)


def encode(delta: torch.Tensor, config: CompressConfig, name: str = "w") -> Codes:
    return METHOD.encode(Projection.of(delta, name), config)


def whole_mask(seed: int, name: str, m: int, n: int, code: int) -> npt.NDArray[np.bool_]:
    return mask_from_words(mask_words(mask_key(seed, name, "delta"), n, m), np.full(m, code, np.uint16))


@accountings
@pytest.mark.parametrize("shape", [(24, 40), (2, 700), (300, 2)])
def test_what_is_decoded_is_the_masked_delta_over_the_keep_probability(accounting: str, shape: tuple[int, int]) -> None:
    delta, config = decaying_delta(*shape), dare(4, 9, accounting)
    codes = encode(delta, config, "layer.w")
    assert {part: code.dtype for part, code in codes.items()} == {"keep": torch.uint16, "values": torch.float16}
    mask = torch.from_numpy(whole_mask(9, "layer.w", *shape, int(codes["keep"])))
    assert torch.equal(codes["values"], delta[mask].half())
    expected = torch.where(mask, delta.half().double(), 0.0) / float(keep_probability(codes["keep"].numpy())[0])
    # One division in float32.
    torch.testing.assert_close(METHOD.decode(codes, "layer.w", shape, 9).double(), expected, rtol=2**-23, atol=0)


def test_the_whole_delta_at_ratio_one_less_what_the_code_takes() -> None:
    delta = decaying_delta(16, 24)
    codes = encode(delta, dare(1, accounting="paper"))
    assert torch.equal(METHOD.decode(codes, "w", (16, 24), 0), delta.half().float())
    assert len(encode(delta, dare(1))["values"]) == 16 * 24 - 1
