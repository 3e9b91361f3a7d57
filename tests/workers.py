"""Prefect process workers for tests, each in a session of its own, so that it can be killed with its runs."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support import Environment

ROOT = Path(__file__).parent.parent


@contextmanager
def worker(
    pool: str, environment: Environment, log: Path, options: Sequence[str] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process worker in a session of its own, which is killed with all its runs at the end."""
    merged = {**os.environ, **environment, "PYTHONPATH": str(ROOT), "PREFECT_WORKER_QUERY_SECONDS": "1"}
    arguments = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process", *options]
    with log.open("ab") as said:
        process = subprocess.Popen(
            arguments,
            cwd=ROOT,
            env={name: value for name, value in merged.items() if value is not None},
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            kill_session(process)


def signal_session(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to a worker and the runs that it started."""
    for pid in _family(process.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def kill_session(process: subprocess.Popen[bytes]) -> None:
    """Kill a worker and the runs that it started, as when its machine goes."""
    signal_session(process, signal.SIGSTOP)  # nobody starts anything any more
    signal_session(process, signal.SIGKILL)
    process.wait()


def _family(leader: int) -> set[int]:
    """Return the processes of a session, and their children: the runs of a worker may have sessions of their own."""
    parents: dict[int, int] = {}
    family = {leader}
    for child in Path("/proc").glob("[0-9]*"):
        try:
            fields = (child / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(child.name)] = int(fields[1])
        if int(fields[3]) == leader:
            family.add(int(child.name))
    while new := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= new
    return family
