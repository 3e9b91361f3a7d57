"""The lossless stage: bytes come back, and nothing that a stranger wrote takes more memory than what is expected."""

import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from impart_core.base.errors import CorruptArtifactError
from impart_core.codec.bitpack import pack
from impart_core.codec.lossless import expand, squeeze


@given(data=st.binary(max_size=2000))
def test_what_was_squeezed_comes_back(data: bytes) -> None:
    assert expand(squeeze(data), len(data), "w") == data


def test_what_repeats_takes_few_bytes_and_what_does_not_about_its_own() -> None:
    assert len(squeeze(bytes(100_000))) < 50
    noise = np.random.default_rng(0).bytes(10_000)
    assert len(noise) <= len(squeeze(noise)) <= len(noise) + 20


@pytest.mark.parametrize(("bits", "packed_at"), [(2, 2), (3, 8), (4, 4), (8, 8)])
def test_codes_with_a_peak_take_hardly_more_than_at_the_highest_level(bits: int, packed_at: int) -> None:
    steps = np.rint(np.random.default_rng(bits).normal(scale=2**bits / 5, size=40_000))
    data = pack((steps.astype(np.int64) % 2**bits).astype(np.uint8), packed_at).tobytes()
    assert len(squeeze(data)) <= 1.005 * len(zstandard.ZstdCompressor(level=19).compress(data))


@given(data=st.binary(max_size=500))
def test_the_same_bytes_are_squeezed_the_same_each_time_and_without_their_size_or_a_checksum(data: bytes) -> None:
    found = squeeze(data)
    assert squeeze(bytes(data)) == found
    frame = zstandard.get_frame_parameters(found)
    assert (frame.content_size, frame.has_checksum) == (zstandard.CONTENTSIZE_UNKNOWN, False)


@given(data=st.binary(min_size=1, max_size=500), off=st.integers(-500, 500).filter(bool))
def test_another_size_than_it_has_is_refused(data: bytes, off: int) -> None:
    with pytest.raises(CorruptArtifactError, match=r"codes of 'w' (expand to .* bytes, not|cannot be expanded)"):
        expand(squeeze(data), max(0, len(data) + off), "w")


@given(data=st.binary(min_size=1, max_size=200))
def test_what_is_no_such_data_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptArtifactError, match="codes of 'w'"):
        expand(b"\0" + data, len(data), "w")  # no frame of zstd begins with a zero byte


@given(size=st.integers(1, 2000), cut=st.integers(1, 2000))
def test_what_was_cut_short_is_refused(size: int, cut: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    whole = squeeze(data)
    with pytest.raises(CorruptArtifactError, match="codes of 'w'"):
        expand(whole[: max(0, len(whole) - cut)], size, "w")


@given(data=st.binary(min_size=1, max_size=200), more=st.binary(min_size=1, max_size=50))
def test_what_has_more_behind_it_is_refused(data: bytes, more: bytes) -> None:
    for tail in (more, squeeze(more)):
        with pytest.raises(CorruptArtifactError, match="codes of 'w'"):
            expand(squeeze(data) + tail, len(data), "w")


def test_data_that_says_its_size_is_refused_before_memory_is_taken_by_it() -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(256 << 20))
    assert_refused_in_little_memory(bomb, "it says its size")


def test_a_bomb_takes_no_more_memory_than_what_is_expected() -> None:
    bomb = squeeze(bytes(256 << 20))
    assert len(bomb) < 1 << 16
    assert_refused_in_little_memory(bomb, "codes of 'w' cannot be expanded")


def assert_refused_in_little_memory(bomb: bytes, sentence: str) -> None:
    tracemalloc.start()
    with pytest.raises(CorruptArtifactError, match=sentence):
        expand(bomb, 1024, "w")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
