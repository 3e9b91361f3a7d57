"""BitDelta: a bit an entry and one scale, within an exact budget at any ratio, and no bias."""

import numpy as np
import pytest
import torch

from impart_core.base.errors import CorruptArtifactError
from impart_core.blocks.request import CompressConfig
from impart_core.codec.bitpack import unpack
from impart_core.codec.mask import keep_probability, mask_from_words, mask_key, mask_words
from impart_core.codec.parts import Codes, nbytes
from impart_core.delta.budget import budget_bytes
from impart_core.methods.base import Projection
from impart_core.methods.bitdelta import BitDelta, BitDeltaOptions
from tests.impart_core.methods.codes import no_factors, same
from tests.impart_core.pipeline import config_of
from tests.support import decaying_delta

pytestmark = pytest.mark.usefixtures("one_thread")

METHOD = BitDelta()
accountings = pytest.mark.parametrize("accounting", ["bytes", "paper"])
scalings = pytest.mark.parametrize("per_row", [False, True])


def bitdelta(cr: float, seed: int = 0, accounting: str = "bytes", **options: bool) -> CompressConfig:
    return config_of(cr, method="bitdelta", seed=seed, accounting=accounting, options=options)


def encode(delta: torch.Tensor, config: CompressConfig, name: str = "w", scales: torch.Tensor | None = None) -> Codes:
    m, n = delta.shape
    return METHOD.encode(Projection(name, (m, n), lambda: delta, no_factors, scales=scales), config)


def mask_of(codes: Codes, shape: tuple[int, int], seed: int = 0, name: str = "w") -> torch.Tensor:
    """Return the mask that the codes' keep probability stands for, all at once."""
    (m, n), keep = shape, codes["keep"].numpy()
    if not len(keep):
        return torch.ones(m, n, dtype=torch.bool)
    return torch.from_numpy(mask_from_words(mask_words(mask_key(seed, name, "delta"), n, m), keep.repeat(m)))


def test_at_ratio_sixteen_few_entries_make_room_for_the_scale() -> None:
    codes = encode(decaying_delta(256, 256), bitdelta(16))
    assert nbytes(codes) <= 256 * 256 // 8
    # 4 + 2 bytes are 48 signs, and a step of the keep probability is one entry on average here.
    assert 256 * 256 - int(mask_of(codes, (256, 256)).sum()) == pytest.approx(48, abs=8)


@pytest.mark.parametrize("cr", [1, 4, 15])
@scalings
@accountings
def test_below_sixteen_every_entry_has_its_sign_and_the_rest_of_the_budget_is_left(
    accounting: str, per_row: bool, cr: float
) -> None:
    delta = decaying_delta(40, 999)
    codes = encode(delta, bitdelta(cr, accounting=accounting, per_row=per_row))
    assert len(codes["keep"]) == 0
    assert nbytes(codes) == 40 * 999 // 8 + 4 * (40 if per_row else 1)
    magnitude = delta.abs().double().mean(dim=1, keepdim=True) if per_row else delta.abs().double().mean()
    torch.testing.assert_close(  # one cast
        METHOD.decode(codes, "w", (40, 999), 0).double(), magnitude * delta.sign().double(), rtol=2**-23, atol=0
    )


@pytest.mark.parametrize(("cr", "kept"), [(6, 25), (7, 8)])
def test_a_small_matrix_at_a_ratio_below_sixteen_keeps_no_more_than_fit_either(cr: float, kept: int) -> None:
    codes = encode(torch.ones(5, 5), bitdelta(cr))  # 8 bytes hold the scale and 25 signs, 7 also need the code
    assert nbytes(codes) <= 50 / cr
    assert int(mask_of(codes, (5, 5)).sum()) == kept


@scalings
@accountings
@pytest.mark.parametrize("cr", [16, 40])
@pytest.mark.parametrize("shape", [(24, 90), (2, 700), (90, 25)])
def test_what_is_decoded_is_the_kept_signs_times_their_mean_over_the_keep_probability(
    shape: tuple[int, int], cr: float, accounting: str, per_row: bool
) -> None:
    delta, config = decaying_delta(*shape), bitdelta(cr, 9, accounting, per_row=per_row)
    if METHOD.highest_cr(*shape, config) < cr:
        return
    codes = encode(delta, config, "layer.w")
    dtypes = {"scales": torch.float32, "signs": torch.uint8, "keep": torch.uint16}
    assert {part: code.dtype for part, code in codes.items()} == dtypes
    mask = mask_of(codes, shape, 9, "layer.w")
    kept = unpack(codes["signs"].numpy(), 1, int(mask.sum()))
    assert torch.equal(torch.from_numpy(kept).bool(), delta[mask] >= 0)
    values, axis = torch.where(mask, delta.double(), 0.0), 1 if per_row else (0, 1)
    mean = values.abs().sum(axis, keepdim=True) / mask.sum(axis, keepdim=True).clamp(min=1)
    q = float(keep_probability(codes["keep"].numpy()).prod())
    # One cast and one division in float32.
    torch.testing.assert_close(
        METHOD.decode(codes, "layer.w", shape, 9).double(), values.sign() * mean / q, rtol=2**-22, atol=0
    )


def test_the_highest_ratio_of_a_large_projection_leaves_room_for_what_the_lowest_step_keeps() -> None:
    highest = METHOD.highest_cr(4096, 4096, bitdelta(1))
    assert highest == pytest.approx(2 * 4096 * 4096 / (4 + 2 + (256 + 6 * 16) / 8))
    assert METHOD.highest_cr(4096, 4096, bitdelta(1, accounting="paper")) == 16 * 65536
    highest = METHOD.highest_cr(1024, 1024, bitdelta(1))
    for seed in range(3):
        codes = encode(torch.ones(1024, 1024), bitdelta(highest, seed))
        assert len(codes["signs"]) > 0
        assert nbytes(codes) <= budget_bytes(1024, 1024, highest)


def test_scales_of_rows_lower_the_highest_ratio_which_says_so() -> None:
    one, each = (METHOD.highest_cr(256, 256, bitdelta(1, per_row=per_row)) for per_row in (False, True))
    assert one == pytest.approx(2 * 256**2 / (4 + 2 + 1), rel=0.2)
    assert each == pytest.approx(2 * 256**2 / (4 * 256 + 2 + 1), rel=0.01)
    paper = bitdelta(1, accounting="paper", per_row=True)
    assert METHOD.highest_cr(256, 256, paper) == 16 * 65536
    assert BitDeltaOptions(per_row=True).more_room("bytes") == "set per_row to false"
    assert BitDeltaOptions(per_row=True).more_room("paper") is BitDeltaOptions().more_room("bytes") is None


@pytest.mark.parametrize("cr", [4, 20])
@scalings
def test_scales_of_a_distillation_are_stored_in_the_place_of_the_means(per_row: bool, cr: float) -> None:
    delta, config = decaying_delta(40, 200), bitdelta(cr, per_row=per_row, distil=True)
    usual = encode(delta, config)
    tuned = torch.linspace(0.5, 1, len(usual["scales"]))
    codes = encode(delta, config, scales=tuned)
    assert same(codes, {**usual, "scales": tuned})
    ratio = METHOD.decode(codes, "w", (40, 200), 0) / METHOD.decode(usual, "w", (40, 200), 0)
    expected = (tuned / usual["scales"])[:, None].expand(40, 200)
    kept = mask_of(codes, (40, 200)) & (usual["scales"][:, None] > 0)
    torch.testing.assert_close(ratio[kept], expected[kept])
    with pytest.raises(ValueError, match="3 scales for 'w' instead of"):
        encode(delta, config, scales=torch.ones(3))


def test_over_seeds_the_mean_scale_is_that_of_all_entries() -> None:
    delta = decaying_delta(24, 32)
    scales = [float(encode(delta, bitdelta(64, seed, "paper"))["scales"]) / 4 for seed in range(256)]
    spread = np.std(scales) / 16
    assert np.mean(scales) == pytest.approx(float(delta.abs().mean()), abs=4 * spread)
    assert spread < 0.01 * np.mean(scales)


def test_scales_and_keep_probabilities_that_go_with_no_such_matrix_are_refused() -> None:
    codes = encode(decaying_delta(40, 200), bitdelta(20))
    for changed in ({"scales": codes["scales"].repeat(39)}, {"keep": torch.tensor([9, 9], dtype=torch.uint16)}):
        with pytest.raises(CorruptArtifactError, match=r"'w' have .* which go with no matrix of 40 rows"):
            METHOD.decode({**codes, **changed}, "w", (40, 200), 0)
