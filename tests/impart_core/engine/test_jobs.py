"""Which blocks share a task: small ones, in their order, and never one that is calibrated."""

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from impart_core.engine.jobs import Planned

LEAST, MOST = 256 << 10, 4 << 20


def job(size: int) -> Any:
    """Return what of a job counts here: the bytes of its fine-tuned weights."""
    return SimpleNamespace(pairs={"weight": SimpleNamespace(finetuned=SimpleNamespace(nbytes=size))})


def planned(sizes: list[int], layers: set[int] = frozenset()) -> Planned:  # type: ignore[assignment]
    """Return jobs of these sizes, of which some are layers that are calibrated."""
    return Planned(tuple(map(job, sizes)), tuple(range(len(sizes))), dict.fromkeys(layers, None))  # type: ignore[arg-type]


@given(
    sizes=st.lists(st.integers(0, 3 * MOST) | st.integers(0, LEAST), min_size=1, max_size=60),
    at_once=st.integers(1, 64),
    data=st.data(),
)
def test_every_block_is_in_one_group_that_is_no_larger_than_it_may_be(
    sizes: list[int], at_once: int, data: st.DataObject
) -> None:
    layers = data.draw(st.sets(st.sampled_from(range(len(sizes)))))
    groups = planned(sizes, layers).groups(at_once)
    assert [number for group in groups for number in group] == list(range(len(sizes)))
    for group in groups:
        assert len(group) == 1 or sum(sizes[number] for number in group) <= MOST
        assert len(group) == 1 or not layers & set(group)


def test_tiny_blocks_share_a_task_and_those_of_real_models_do_not() -> None:
    assert planned([1000] * 41).groups(2) == (tuple(range(41)),)
    assert len(planned([1000] * 41).groups(64)) == 1
    assert len(planned([30 << 20] * 25).groups(1)) == 25


def test_there_is_work_for_every_worker_where_there_is_enough() -> None:
    for at_once in (1, 2, 4, 8):
        assert len(planned([300_000] * 40).groups(at_once)) >= 4 * at_once
