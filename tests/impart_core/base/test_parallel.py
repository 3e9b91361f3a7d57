import threading
import time
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from impart_core.base.parallel import at_once, in_order


@given(pieces=st.lists(st.integers()), count=st.integers(1, 5))
def test_results_come_in_the_order_of_the_pieces(pieces: list[int], count: int) -> None:
    with at_once(count):
        assert list(in_order(lambda piece: 2 * piece, pieces)) == [2 * piece for piece in pieces]


@pytest.mark.parametrize("count", [2, 3])
def test_so_many_are_worked_on_at_once(count: int) -> None:
    together = threading.Barrier(count)
    with at_once(count):
        assert len(list(in_order(lambda _: together.wait(10), range(2 * count)))) == 2 * count


def test_no_more_pieces_are_taken_than_are_worked_on() -> None:
    taken, finished = [], []

    def pieces() -> Iterator[int]:
        for piece in range(20):
            taken.append(piece)
            yield piece

    with at_once(3):
        for done in in_order(lambda piece: piece, pieces()):
            finished.append(done)
            assert len(taken) <= len(finished) + 2


def test_one_at_a_time_is_the_callers_thread_and_others_are_not_nested() -> None:
    def whereabouts(_: int) -> tuple[int, int]:
        (inner,) = in_order(lambda _: threading.get_ident(), [0])
        return threading.get_ident(), inner

    assert list(in_order(whereabouts, [0])) == [(threading.get_ident(),) * 2]
    with at_once(2):
        found = list(in_order(whereabouts, range(4)))
    assert all(outer == inner != threading.get_ident() for outer, inner in found)
    assert list(in_order(whereabouts, [0])) == [(threading.get_ident(),) * 2]


def test_an_error_comes_through_and_ends_it() -> None:
    begun = []

    def work(piece: int) -> int:
        begun.append(piece)
        time.sleep(0.01)
        return 1 // (piece - 3)

    with at_once(2), pytest.raises(ZeroDivisionError):
        list(in_order(work, range(50)))
    assert len(begun) < 10


@pytest.mark.usefixtures("two_threads")
def test_threads_run_a_kernel_on_one_thread_each() -> None:
    with at_once(2):
        assert set(in_order(lambda _: torch.get_num_threads(), range(4))) == {1}
