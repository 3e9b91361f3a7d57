"""DARE: an exact budget, a regenerated mask, and no bias."""

from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.base.errors import CorruptArtifactError, TensorValueError
from impart_core.blocks.request import CompressConfig
from impart_core.codec.mask import keep_probability, mask_from_words, mask_key, mask_words
from impart_core.codec.parts import Codes
from impart_core.delta.budget import budget_bytes
from impart_core.methods.base import Projection
from impart_core.methods.dare import Dare
from tests.impart_core.methods.codes import nbytes, one_entry, same
from tests.impart_core.pipeline import config_of
from tests.support import decaying_delta

METHOD = Dare()
SEEDS = 1024
sides = st.integers(2, 40)
accountings = pytest.mark.parametrize("accounting", ["bytes", "paper"])


def dare(cr: float, seed: int = 0, accounting: str = "bytes") -> CompressConfig:
    return config_of(cr, method="dare", seed=seed, accounting=accounting)


def encode(delta: torch.Tensor, config: CompressConfig, name: str = "w") -> Codes:
    return METHOD.encode(Projection.of(delta, name), config)


@given(m=sides, n=sides, cr=st.floats(1, 800), seed=st.integers(0, 5))
@settings(max_examples=150, deadline=None)
@accountings
def test_stored_bytes_are_within_the_ratio_for_every_feasible_request(
    accounting: str, m: int, n: int, cr: float, seed: int
) -> None:
    config = dare(cr, seed, accounting)
    if cr > METHOD.highest_cr(m, n, config):
        return
    codes = encode(decaying_delta(m, n, seed=seed), config)
    assert accounting == "paper" or 2 * m * n / nbytes(codes) >= cr
    assert nbytes(codes) <= METHOD.expected_bytes(m, n, config)
    assert METHOD.decode(codes, "w", (m, n), seed).shape == (m, n)


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


@given(m=sides, n=sides, at=st.integers(0, 1599))
@settings(max_examples=40, deadline=None)
def test_a_single_entry_is_kept_or_dropped(m: int, n: int, at: int) -> None:
    delta = one_entry(m, n, at)
    decoded = METHOD.decode(encode(delta, dare(2)), "w", (m, n), 0)
    assert bool((decoded[delta == 0] == 0).all())
    assert bool((decoded[delta != 0] <= 0).all())


def test_the_whole_delta_at_ratio_one_less_what_the_code_takes() -> None:
    delta = decaying_delta(16, 24)
    codes = encode(delta, dare(1, accounting="paper"))
    assert torch.equal(METHOD.decode(codes, "w", (16, 24), 0), delta.half().float())
    assert len(encode(delta, dare(1))["values"]) == 16 * 24 - 1


@accountings
def test_the_same_request_gives_the_same_codes_and_another_seed_or_name_another_mask(accounting: str) -> None:
    delta = decaying_delta(32, 48)
    first = encode(delta, dare(4, accounting=accounting))
    assert same(encode(delta.clone(), dare(4, accounting=accounting)), first)
    assert not same(encode(delta, dare(4, accounting=accounting), "other"), first)
    assert not same(encode(delta, dare(4, 1, accounting)), first)


@cache
def errors() -> npt.NDArray[np.float64]:
    """Return what each seed decodes to, less the delta as it is stored, (seeds, m, n)."""
    delta, found = decaying_delta(24, 32), []
    for seed in range(SEEDS):
        codes = encode(delta, dare(4, seed, "paper"))
        found.append(METHOD.decode(codes, "w", (24, 32), seed).double() - delta.half().double())
    return torch.stack(found).numpy()


@pytest.mark.parametrize("seeds", [1, 16, 256, SEEDS])
def test_over_seeds_the_mean_approaches_the_delta_as_one_over_their_root(seeds: int) -> None:
    means = errors().reshape(-1, seeds, 24, 32).mean(axis=1)
    found = np.sqrt((means**2).sum(axis=(1, 2)).mean())
    # An entry δ is δ/q with probability q, which has the variance δ²(1/q − 1); here q is 1/4.
    expected = np.sqrt(3 / seeds) * np.linalg.norm(decaying_delta(24, 32).numpy())
    # Some 200 of the 768 entries weigh alike, so that even a single mean's error is known to about 5 %.
    assert found == pytest.approx(expected, rel=0.2)


def test_a_value_beyond_float16_is_refused_with_the_tensors_name() -> None:
    with pytest.raises(TensorValueError, match="'layer_w' reaches 70000"):
        encode(torch.full((4, 4), 7e4), dare(2), "layer_w")


def test_codes_that_do_not_fit_their_mask_are_refused_by_name() -> None:
    codes = encode(decaying_delta(16, 16), dare(2))
    for changed in (
        {**codes, "values": codes["values"][:-1]},
        {**codes, "values": codes["values"].repeat(2)},
        {**codes, "values": codes["values"].float()},
        {**codes, "keep": codes["keep"].repeat(2)},
        {**codes, "keep": codes["keep"][:0]},
        {"keep": codes["keep"]},
    ):
        with pytest.raises(CorruptArtifactError, match="'w'"):
            METHOD.decode(changed, "w", (16, 16), 0)
    with pytest.raises(CorruptArtifactError, match="but its mask keeps"):
        METHOD.decode(codes, "renamed", (16, 16), 0)
