"""Processes that are killed at a step of their own: a call that touches files, counted, so that no clock decides."""

import os
import signal
import sys
from collections.abc import Callable

_STEPS = ("os.", "open", "shutil.", "ctypes.")


def run_killed(work: Callable[[], object], at: int) -> bool:
    """Run something in a process that is killed before its step of this number; return whether it ended before."""
    child = os.fork()
    if child == 0:
        steps = 0

        def stop(event: str, _: object) -> None:
            nonlocal steps
            steps += event.startswith(_STEPS)
            if steps == at:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(stop)
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return status == 0


def count_steps(work: Callable[[], object]) -> int:
    """Return how many steps something takes; it is done in another process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        steps = 0

        def count(event: str, _: object) -> None:
            nonlocal steps
            steps += event.startswith(_STEPS)

        try:
            sys.addaudithook(count)
            work()
            os.write(writing, str(steps).encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    try:
        return int(os.read(reading, 20))
    finally:
        os.close(reading)
