"""Items of a split: one order for all models, cut the same for all, each told by its content."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from impart_core.base.errors import EvaluationError
from impart_core.evaluation.items import (
    check_validation_items,
    item_digest,
    order_of,
    ordered_task,
    pieces,
    split_items,
)
from tests.impart_core.evaluation.own_tasks import SUMS, sums, write_task


@given(start=st.integers(0, 3000), length=st.integers(1, 9000), more=st.integers(1, 9000))
def test_pieces_cover_a_range_and_are_those_of_any_longer_one(start: int, length: int, more: int) -> None:
    stop = start + length
    cut = pieces((start, stop))
    assert [item for piece in cut for item in range(*piece)] == list(range(start, stop))
    assert set(cut[:-1]) <= set(pieces((start, stop + more)))


@pytest.mark.parametrize("at", [50, 100, 200, 500, 1000, 2000, 5000])
def test_a_range_that_ends_at_a_round_number_shares_its_pieces_with_what_follows(at: int) -> None:
    assert (*pieces((0, at)), *pieces((at, 7000))) == pieces((0, 7000))


@given(items=st.integers(1, 300), seed=st.integers(0, 2**32 - 1))
def test_an_order_has_every_item_once(items: int, seed: int) -> None:
    assert sorted(order_of("a task", items, seed)) == list(range(items))


def test_an_order_is_a_shuffle_of_its_own_for_each_task_and_seed() -> None:
    orders = {order_of(task, 200, seed) for task in ("a", "b") for seed in (0, 1)}
    assert len(orders) == 4
    assert order_of("a", 8, 0) == (0, 1, 5, 6, 2, 7, 4, 3)  # on any machine
    for order in orders:  # its first items come from everywhere: of a sorted split, not one end
        half = sum(position < 100 for position in order[:50])
        assert 12 <= half <= 38  # 25 and four standard deviations, 3.1 each


@pytest.mark.e2e
def test_items_are_counted_and_told_by_what_is_rendered(tmp_path: Path) -> None:
    numbers = {"validation": range(8), "test": [90, 3, 91, 5]}
    splits = {split: [{**row, "id": split} for row in sums(of_split)] for split, of_split in numbers.items()}
    name, options = write_task(tmp_path, splits, **SUMS)
    found = split_items([name], "validation", options)[name]
    assert (found.count, found.has_test, found.higher_is_better) == (8, True, {"exact_match": True})
    ordered = ordered_task(name, "validation", options)
    assert {ordered.order[place] for place in found.in_test} == {3, 5}  # whatever else the documents hold
    digests = [item_digest(ordered.task, document) for document in ordered.documents(range(8))]
    assert len(set(digests)) == 8
    other = ordered_task(name, "test", options)
    assert digests[3] == item_digest(other.task, other.documents([1])[0])


@pytest.mark.e2e
def test_validation_items_that_are_not_apart_from_the_test_split_are_refused(tmp_path: Path) -> None:
    name, options = write_task(tmp_path / "both", {"validation": sums(range(8)), "test": sums([20, 3])}, **SUMS)
    (shared,) = split_items([name], "validation", options)[name].in_test
    with pytest.raises(EvaluationError, match=f"1 of the first {shared + 1} validation items .*also in its test split"):
        check_validation_items([name], shared + 1, options)
    if shared:
        check_validation_items([name], shared, options)
    with pytest.raises(EvaluationError, match="has 8 validation items, and 9 are asked for"):
        check_validation_items([name], 9, options)
    name, options = write_task(tmp_path / "alone", {"validation": sums(range(8))}, **SUMS)
    with pytest.raises(EvaluationError, match="has no test split"):
        check_validation_items([name], 4, options)
    name, options = write_task(tmp_path / "test", {"test": sums(range(8))}, **SUMS)
    with pytest.raises(EvaluationError, match="has no validation split"):
        check_validation_items([name], 4, options)


@pytest.mark.e2e
def test_the_zoo_keeps_its_splits_apart() -> None:
    found = check_validation_items(["tinyzoo_math", "tinyzoo_code", "tinyzoo_chat"], 300)
    assert {name: (one.count, one.in_test) for name, one in found.items()} == dict.fromkeys(found, (300, ()))


@pytest.mark.e2e
@pytest.mark.parametrize("items", [(0, 9), (8, 9), (3, 3), (4, 2), (-1, 2)])
def test_a_range_that_the_split_does_not_have_is_refused(items: tuple[int, int], tmp_path: Path) -> None:
    name, options = write_task(tmp_path, {"validation": sums(range(8))}, **SUMS)
    with pytest.raises(EvaluationError, match=r"are asked for|are no range"):
        ordered_task(name, "validation", options).positions(items)


@pytest.mark.e2e
def test_a_task_whose_data_changed_is_read_again(tmp_path: Path) -> None:
    name, options = write_task(tmp_path, {"validation": sums(range(8))}, **SUMS)
    assert ordered_task(name, "validation", options) is ordered_task(name, "validation", options)
    write_task(tmp_path, {"validation": sums(range(5))}, **SUMS)
    assert len(ordered_task(name, "validation", options).order) == 5
