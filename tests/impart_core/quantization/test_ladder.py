"""Ladders: what texts describe, which vectors fall in which group, and sentences for everything else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.base.errors import ConfigError
from impart_core.quantization.grid import RowRange
from impart_core.quantization.ladder import Ladder, RankGroup

bits = st.sampled_from([2, 3, 4, 8, 16])


@st.composite
def ladders(draw: st.DrawFn) -> Ladder:
    counted = draw(st.lists(st.builds(RankGroup, bits=bits, vectors=st.integers(1, 40)), max_size=4))
    return Ladder(groups=(*counted, RankGroup(bits=draw(bits))))


def test_the_default_is_the_papers() -> None:
    assert str(Ladder()) == "8x2,3x32,2"
    assert Ladder() == Ladder.parse("8x2,3x32,2")
    assert Ladder().counted == 34


@given(ladder=ladders())
@settings(deadline=None)
def test_a_ladder_is_what_its_text_and_its_json_describe(ladder: Ladder) -> None:
    assert Ladder.parse(str(ladder)) == ladder
    assert Ladder.model_validate(str(ladder)) == ladder
    assert Ladder.model_validate_json(ladder.model_dump_json()) == ladder
    assert Ladder.parse(" " + str(ladder).replace(",", " , ")) == ladder


def test_vectors_fall_in_groups_from_the_first_on() -> None:
    assert Ladder.parse("8x2,3x32,2").spans(100) == (
        RowRange(0, 2, 8),
        RowRange(2, 34, 3),
        RowRange(34, 100, 2),
    )
    assert Ladder.parse("4").spans(5) == (RowRange(0, 5, 4),)


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, []), (1, [(0, 1, 8)]), (2, [(0, 2, 8)]), (3, [(0, 2, 8), (2, 3, 3)]), (34, [(0, 2, 8), (2, 34, 3)])],
)
def test_with_fewer_vectors_it_ends_earlier(count: int, expected: list[tuple[int, int, int]]) -> None:
    assert [(span.start, span.stop, span.bits) for span in Ladder().spans(count)] == expected


@given(ladder=ladders(), count=st.integers(0, 200))
@settings(deadline=None)
def test_every_vector_is_in_one_group_of_its_ladders_bits(ladder: Ladder, count: int) -> None:
    expected = [group.bits for group in ladder.groups for _ in range(group.vectors or 200)][:count]
    assert [span.bits for span in ladder.spans(count) for _ in range(span.start, span.stop)] == expected
    assert all(span.start < span.stop for span in ladder.spans(count))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has the group '', which is not bits x vectors"),
        ("8x2,,2", "has the group '', which is not bits x vectors"),
        ("8*2,2", r"has the group '8\*2', which is not bits x vectors"),
        ("8x-2,2", "has the group '8x-2', which is not"),
        ("8x2x3,2", "has the group '8x2x3', which is not"),
        ("eight", "has the group 'eight', which is not"),
        ("5x2,2", "has a group of 5 bits; they can be 2, 3, 4, 8, 16"),
        ("1", "has a group of 1 bits"),
        ("8x0,2", "has a group of no vectors, '8x0'. Leave it out"),
        ("8x2,3x32", "has no group for the rest.* like 8x2,3x32,2"),
        ("8,3x32,2", "has a group without a count before its last"),
    ],
)
def test_a_text_that_describes_none_is_refused_in_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=f"^Ladder '{text.replace('*', '[*]')}' {sentence}"):
        Ladder.parse(text)
    with pytest.raises(ConfigError, match=sentence):
        Ladder.model_validate(text)


def test_groups_that_are_no_ladder_are_refused_as_well() -> None:
    with pytest.raises(ConfigError, match="has no group for the rest"):
        Ladder(groups=(RankGroup(bits=2, vectors=3),))
    with pytest.raises(ConfigError, match="has no group for the rest"):
        Ladder(groups=())
    with pytest.raises(ConfigError, match=r"bits is 5; it must be 2, 3, 4, 8 or 16"):
        RankGroup(bits=5)


def test_counts_beyond_the_rank_are_refused_with_a_ladder_that_would_do() -> None:
    Ladder().check_rank(34, "the largest projection")
    with pytest.raises(ConfigError, match=r"asks for 34 vectors .* the largest projection has rank 33.*8x2,3x31,2"):
        Ladder().check_rank(33, "the largest projection")
    with pytest.raises(ConfigError, match=r"Lower the counts to 1 in all, as in 8x1,2\."):
        Ladder().check_rank(1, "it")


@given(ladder=ladders(), rank=st.integers(1, 200))
@settings(deadline=None)
def test_the_ladder_that_would_do_does(ladder: Ladder, rank: int) -> None:
    if ladder.counted <= rank:
        ladder.check_rank(rank, "it")
        return
    with pytest.raises(ConfigError) as caught:
        ladder.check_rank(rank, "it")
    Ladder.parse(str(caught.value).split("as in ")[1].rstrip(".")).check_rank(rank, "it")
