"""DARE: an exact budget, a regenerated mask, and no bias."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.base.errors import CorruptArtifactError, TensorValueError
from impart_core.blocks.request import CompressConfig
from impart_core.codec.mask import keep_probability, mask_from_words, mask_key, mask_words
from impart_core.codec.parts import Codes, nbytes
from impart_core.delta.budget import budget_bytes
from impart_core.methods.base import Projection
from impart_core.methods.dare import Dare
from tests.impart_core.pipeline import config_of
from tests.support import decaying_delta

METHOD = Dare()
sides = st.integers(2, 40)
accountings = pytest.mark.parametrize("accounting", ["bytes", "paper"])


def dare(cr: float, seed: int = 0, accounting: str = "bytes") -> CompressConfig:
    return config_of(cr, method="dare", seed=seed, accounting=accounting)


def encode(delta: torch.Tensor, config: CompressConfig, name: str = "w") -> Codes:
    return METHOD.encode(Projection.of(delta, name), config)


def whole_mask(seed: int, name: str, m: int, n: int, code: int) -> npt.NDArray[np.bool_]:
    return mask_from_words(mask_words(mask_key(seed, name, "delta"), n, m), np.full(m, code, np.uint16))


@given(m=sides, n=sides, cr=st.floats(1, 20), seed=st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_one_step_more_would_not_fit_the_budget(m: int, n: int, cr: float, seed: int) -> None:
    if cr > METHOD.highest_cr(m, n, dare(cr)):
        return
    codes = encode(torch.ones(m, n), dare(cr, seed))
    code, kept = int(codes["keep"]), len(codes["values"])
    assert kept == whole_mask(seed, "w", m, n, code).sum()
    following = m * n if code == 65535 else whole_mask(seed, "w", m, n, code + 1).sum()
    assert code == 65535 or 2 + 2 * following > budget_bytes(m, n, cr)


@given(m=sides, n=sides, seed=st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_the_highest_ratio_has_room_for_one_value_and_any_higher_one_for_none(m: int, n: int, seed: int) -> None:
    highest = METHOD.highest_cr(m, n, dare(1))
    codes = encode(torch.ones(m, n), dare(highest, seed))
    assert nbytes(codes) <= budget_bytes(m, n, highest) == 2 + 2
    assert len(codes["values"]) <= 1
    assert budget_bytes(m, n, np.nextafter(highest, np.inf)) < 2 + 2


def test_the_highest_ratio_of_a_large_projection_is_what_the_steps_can_tell_from_nothing() -> None:
    assert METHOD.highest_cr(4096, 4096, dare(1)) == 32768
    assert METHOD.highest_cr(4096, 4096, dare(1, accounting="paper")) == 65536
    codes = encode(torch.ones(2048, 2048), dare(32768))
    assert nbytes(codes) <= budget_bytes(2048, 2048, 32768)
    assert len(codes["values"]) > 0


def test_where_not_even_the_lowest_step_fits_nothing_is_kept() -> None:
    codes = encode(torch.ones(1024, 1024), dare(2**19))  # four bytes; the lowest step keeps about 16 values
    assert {part: tuple(code.shape) for part, code in codes.items()} == {"keep": (0,), "values": (0,)}
    assert not METHOD.decode(codes, "w", (1024, 1024), 0).any()


@pytest.mark.parametrize(("cr", "code"), [(1, 65535), (4, 16383), (32, 2047), (3, 21844)])
def test_under_the_papers_count_the_keep_probability_is_one_over_the_ratio(cr: float, code: int) -> None:
    codes = encode(torch.ones(20, 30), dare(cr, accounting="paper"))
    assert codes["keep"].tolist() == [code]
    assert abs((code + 1) / 65536 - 1 / cr) <= 0.5 / 65536


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


def test_a_value_beyond_float16_is_refused_with_the_tensors_name() -> None:
    with pytest.raises(TensorValueError, match="'layer_w' reaches 70000"):
        encode(torch.full((4, 4), 7e4), dare(2), "layer_w")


def test_values_of_another_mask_are_refused_with_both_numbers() -> None:
    codes = encode(decaying_delta(16, 16), dare(2))
    kept = len(codes["values"])
    with pytest.raises(CorruptArtifactError, match=f"codes of 'renamed' hold {kept} values, but its mask keeps"):
        METHOD.decode(codes, "renamed", (16, 16), 0)
