"""The command line in processes that are forked from a warm one: as real as any, without the seconds of its imports."""

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support import Environment

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.faults.preload"])


class Command:
    """A command that runs in a process of its own."""

    def __init__(self, work: Callable[..., object], arguments: tuple[Any, ...], environment: Environment) -> None:
        """Start it; see `start_warm` and `start_work`."""
        self._folder = tempfile.TemporaryDirectory()
        self._said = [Path(self._folder.name) / name for name in ("out", "err")]
        inherited = {**os.environ, **environment}
        self._process = _context.Process(target=_begin, args=(work, arguments, inherited, self._said), daemon=True)
        self._process.start()

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.is_alive()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it still runs."""
        assert self._process.pid
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    def wait(self, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Wait until it ends; kill it when that takes too long."""
        self._process.join(timeout)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
            raise TimeoutError(f"It took more than {timeout} s and said: {self.said()}")
        out, err = self.said()
        code = self._process.exitcode
        return subprocess.CompletedProcess("impart", -1 if code is None else code, out, err)

    def result(self, timeout: float = 120) -> dict[str, Any]:
        """Wait until it ends, which it must do well, and return the one object that it prints."""
        done = self.wait(timeout)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert isinstance(found, dict)
        return found

    def said(self) -> tuple[str, str]:
        """Return what it printed so far to standard output and standard error."""
        out, err = (path.read_text() if path.exists() else "" for path in self._said)
        return out, err

    def end(self) -> None:
        """Kill it if it still runs."""
        if self._process.is_alive():
            self._process.kill()
        self._process.join()


@contextmanager
def warm(*arguments: str, environment: Environment) -> Iterator[Command]:
    """Run `impart` with these arguments beside the block; it is killed if it still runs at the end."""
    command = Command(impart, arguments, environment)
    try:
        yield command
    finally:
        command.end()


@contextmanager
def beside(work: Callable[..., object], *arguments: Any, environment: Environment) -> Iterator[Command]:
    """Run a function of a module in a process of its own beside the block."""
    command = Command(work, arguments, environment)
    try:
        yield command
    finally:
        command.end()


def run_warm(*arguments: str, environment: Environment, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run `impart` to its end."""
    with warm(*arguments, environment=environment) as command:
        return command.wait(timeout)


def warm_json(*arguments: str, environment: Environment, timeout: float = 120) -> dict[str, Any]:
    """Run `impart` with `--json`, which must succeed, and return the one object that it prints."""
    with warm(*arguments, "--json", environment=environment) as command:
        return command.result(timeout)


def wait_until(condition: Callable[[], bool], *commands: Command, seconds: float = 60) -> None:
    """Wait until a condition holds while commands run."""
    deadline = time.monotonic() + seconds
    while not condition():
        for command in commands:
            assert command.running, command.said()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _begin(
    work: Callable[..., object], arguments: tuple[Any, ...], environment: dict[str, str | None], said: list[Path]
) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, path in enumerate(said, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.clear()
    os.environ.update({name: value for name, value in environment.items() if value is not None})
    tempfile.tempdir = None  # TMPDIR may be another one here
    work(*arguments)


def impart(*arguments: str) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from impart_flows.cli import main

    sys.argv = ["impart", *arguments]
    with temporary_settings({PREFECT_API_URL: os.environ.get("PREFECT_API_URL")}):
        main()
