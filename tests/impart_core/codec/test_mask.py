"""Masks: regenerated bit for bit from a key and integer thresholds, on any machine and by any version."""

import hashlib
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.codec import mask
from impart_core.codec.mask import (
    count_kept,
    fitting_code,
    keep_codes,
    keep_probability,
    kept_by_step,
    kept_of_columns,
    level_chunks,
    mask_from_levels,
    mask_from_words,
    mask_key,
    mask_words,
    whole_mask,
    word_levels,
)

keys = st.integers(0, 2**128 - 1)
sizes = st.integers(1, 40)
code_lists = st.lists(st.integers(0, 65535), min_size=1, max_size=20).map(lambda codes: np.array(codes, np.uint16))


def philox(key: int, block: int) -> list[int]:
    """Return one Philox4x64-10 block as eight 32-bit words, from its definition (Salmon et al. 2011)."""
    limit = 2**64 - 1
    counter, (k0, k1) = [block, 0, 0, 0], (key & limit, key >> 64)
    for _ in range(10):
        left, right = counter[0] * 0xD2E7470EE14C6C93, counter[2] * 0xCA5A826395121157
        counter = [(right >> 64) ^ counter[1] ^ k0, right & limit, (left >> 64) ^ counter[3] ^ k1, left & limit]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & limit, (k1 + 0xBB67AE8584CAA73B) & limit
    return [half for word in counter for half in (word & 0xFFFFFFFF, word >> 32)]


def test_golden_words_and_key() -> None:
    """These are pinned for good: a change would make every published delta undecodable."""
    key = mask_key(0, "model.layers.0.self_attn.q_proj.weight", "u")
    assert key == 0x85751E31C3F41494589C20A463A5E971
    assert mask_words(key, 3, 2).tolist() == [[2330874841, 261983838, 3976266526], [645733725, 2663118130, 2254497361]]


@given(key=keys, rows=sizes, columns=st.integers(1, 5))
def test_words_are_philox_blocks_by_definition(key: int, rows: int, columns: int) -> None:
    blocks = -(-rows // 8)
    words = mask_words(key, rows, columns)
    for column in range(columns):
        # numpy steps its counter before each block, so that the first block is number 1.
        expected = [word for block in range(blocks) for word in philox(key, column * blocks + block + 1)]
        assert words[column].tolist() == expected[:rows]


def test_a_key_is_the_first_half_of_a_digest_of_seed_name_and_role() -> None:
    digest = hashlib.sha256(b'[7,"a.\\u00e4","v"]').digest()
    assert mask_key(7, "a.ä", "v") == int.from_bytes(digest[:16], "little")


def test_keys_of_other_seeds_tensors_and_roles_differ() -> None:
    keys_ = {mask_key(seed, name, role) for seed in (0, 1, 11) for name in ("w", "w1", "1w") for role in ("u", "v")}
    assert len(keys_) == 18


@given(key=keys, rows=sizes, columns=sizes, more=sizes)
def test_a_columns_words_do_not_depend_on_how_many_columns_there_are(
    key: int, rows: int, columns: int, more: int
) -> None:
    assert np.array_equal(mask_words(key, rows, columns + more)[:columns], mask_words(key, rows, columns))


@given(key=keys, rows=sizes, columns=sizes, first=sizes)
def test_words_from_a_column_on_are_those_of_the_whole_mask(key: int, rows: int, columns: int, first: int) -> None:
    whole = mask_words(key, rows, first + columns)
    assert np.array_equal(mask_words(key, rows, columns, first), whole[first:])


@given(key=keys, rows=sizes, columns=sizes, chunk=st.sampled_from([1, 64, 300, 1 << 22]))
@settings(deadline=None)
def test_levels_in_chunks_are_those_of_the_whole_mask(key: int, rows: int, columns: int, chunk: int) -> None:
    with patch.object(mask, "_CHUNK_BYTES", chunk):
        parts = list(level_chunks(key, rows, columns))
    assert np.array_equal(np.concatenate([levels for _, levels in parts]), word_levels(mask_words(key, rows, columns)))
    for columns_, levels in parts:
        assert len(levels) == columns_.stop - columns_.start
        assert len(levels) == 1 or 4 * rows * len(levels) <= chunk


@given(key=keys, codes=code_lists, rows=sizes)
def test_an_entry_is_kept_when_its_word_is_below_the_integer_threshold(key: int, codes: np.ndarray, rows: int) -> None:
    words = mask_words(key, rows, len(codes))
    thresholds = (codes.astype(np.uint64) + 1) << np.uint64(16)
    assert np.array_equal(mask_from_words(words, codes), words.astype(np.uint64) < thresholds[:, None])
    assert np.array_equal(mask_from_levels(word_levels(words), codes), mask_from_words(words, codes))


@given(key=keys, codes=code_lists, rows=sizes, raised=st.integers(0, 65535))
def test_masks_are_nested_in_their_thresholds(key: int, codes: np.ndarray, rows: int, raised: int) -> None:
    words = mask_words(key, rows, len(codes))
    higher = np.minimum(codes.astype(np.int64) + raised, 65535).astype(np.uint16)
    assert not (mask_from_words(words, codes) & ~mask_from_words(words, higher)).any()


@given(key=keys, rows=sizes)
def test_the_highest_code_keeps_every_entry(key: int, rows: int) -> None:
    assert mask_from_words(mask_words(key, rows, 3), np.full(3, 65535, np.uint16)).all()


def test_a_mask_keeps_its_probabilitys_share() -> None:
    codes = keep_codes(np.array([0.02, 0.25, 0.5, 0.9]))
    share = mask_from_words(mask_words(mask_key(0, "w", "u"), 40_000, 4), codes).mean(axis=1)
    # Five standard deviations of a share of 40,000 fair draws: 5·√(0.25/40000) = 0.0125.
    np.testing.assert_allclose(share, keep_probability(codes), rtol=0, atol=0.0125)


def test_every_code_stands_for_its_own_probability_and_back() -> None:
    codes = np.arange(65536, dtype=np.uint16)
    probability = keep_probability(codes)
    assert (probability[0], probability[-1]) == (1 / 65536, 1.0)
    assert np.array_equal(keep_codes(probability), codes)


@given(st.floats(0, 1, exclude_min=True))
def test_a_probability_is_stored_to_half_a_step_and_never_as_zero(probability: float) -> None:
    (stored,) = keep_probability(keep_codes(np.array([probability])))
    assert 0 < stored <= 1
    assert stored == pytest.approx(max(probability, 1 / 65536), abs=0.5 / 65536)


@given(key=keys, rows=sizes, columns=sizes, room=st.integers(-3, 1700), chunk=st.sampled_from([64, 1 << 20]))
def test_the_code_that_fits_keeps_no_more_than_there_is_room_for_and_the_next_one_would(
    key: int, rows: int, columns: int, room: int, chunk: int
) -> None:
    with patch.object(mask, "_CHUNK_BYTES", chunk):
        code = fitting_code(key, rows, columns, room)
        following = np.array([int(code[0]) + 1 if len(code) else 0])
        assert not len(code) or whole_mask(key, rows, columns, code).sum() <= room
        assert following[0] == 65536 or whole_mask(key, rows, columns, following.astype(np.uint16)).sum() > room


@given(key=keys, rows=sizes, columns=sizes, code=st.integers(0, 65535), chunk=st.sampled_from([64, 1 << 20]))
def test_a_whole_mask_is_that_of_its_words(key: int, rows: int, columns: int, code: int, chunk: int) -> None:
    codes = np.array([code], dtype=np.uint16)
    with patch.object(mask, "_CHUNK_BYTES", chunk):
        found = whole_mask(key, rows, columns, codes)
    assert np.array_equal(found, mask_from_words(mask_words(key, rows, columns), codes.repeat(columns)))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (13, 7), (4096, 900), (1_500_003, 3)])
def test_entries_are_counted_in_pieces_as_in_the_whole_mask(rows: int, columns: int) -> None:
    code = np.array([20_000], dtype=np.uint16)
    mask = mask_from_words(mask_words(5, rows, columns), code)
    for first in {0, columns // 2, columns - 1}:
        assert count_kept(5, rows, columns - first, code, first) == int(mask[first:].sum())


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (13, 7), (4096, 900), (1_500_003, 3)])
@pytest.mark.parametrize("sharing", [1, 2, 64])
def test_entries_of_each_column_are_counted_in_pieces_as_in_the_whole_mask(
    rows: int, columns: int, sharing: int
) -> None:
    codes = np.linspace(100, 60_000, columns).astype(np.uint16)
    mask = mask_from_levels(word_levels(mask_words(5, rows, -(-columns // sharing))), codes, sharing)
    assert kept_of_columns(5, rows, codes, sharing).tolist() == mask.sum(axis=1).tolist()


@given(key=keys, rows=st.integers(1, 40), columns=st.integers(1, 70), steps=st.sampled_from([2, 256, 65536]))
@settings(max_examples=50, deadline=None)
def test_entries_are_counted_for_every_keep_code_at_once(key: int, rows: int, columns: int, steps: int) -> None:
    counts, words = kept_by_step(key, rows, columns, steps), mask_words(key, rows, columns)
    assert counts.shape == (columns, steps)
    for step in {0, steps // 3, steps - 1}:
        codes = np.full(columns, (step + 1) * (65536 // steps) - 1).astype(np.uint16)
        assert np.array_equal(counts[:, step], mask_from_words(words, codes).sum(axis=1))


@pytest.mark.parametrize("columns", [1, 3, 4, 5, 9])
def test_columns_that_share_words_have_nested_masks(columns: int) -> None:
    codes = np.linspace(65535, 20_000, columns).astype(np.uint16)
    words = mask_words(7, 50, columns)
    mask = mask_from_levels(word_levels(words[: -(-columns // 4)]), codes, 4)
    for column, code in enumerate(codes):
        own = mask_from_words(words[column // 4][None], code[None])[0]
        assert np.array_equal(mask[column], own)
        assert column % 4 == 0 or not bool((mask[column] & ~mask[column - 1]).any())
