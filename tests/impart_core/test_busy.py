"""Busy time: the union of what overlaps, no gap counted."""

import threading
from time import perf_counter, sleep

import pytest

from impart_core.busy import busy, busy_seconds


def test_time_inside_counts_and_time_outside_does_not() -> None:
    before = busy_seconds()
    with busy():
        sleep(0.05)
    inside = busy_seconds() - before
    sleep(0.05)
    assert busy_seconds() - before == inside >= 0.05


def test_overlapping_work_counts_once() -> None:
    def work() -> None:
        with busy(), busy():
            sleep(0.1)

    before, started = busy_seconds(), perf_counter()
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = perf_counter() - started
    assert 0.1 <= busy_seconds() - before <= elapsed


def test_work_that_fails_has_been_done_all_the_same() -> None:
    before = busy_seconds()
    with pytest.raises(ValueError), busy():
        sleep(0.02)
        raise ValueError
    assert busy_seconds() - before >= 0.02
    with busy():
        sleep(0.02)
        assert busy_seconds() - before >= 0.04
