"""The command line in processes that are forked from a warm one: as real as any, without the seconds of its imports."""

import atexit
import contextlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from impart_flows.cli import surroundings

Environment = Mapping[str, str | None]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.faults.preload"])
# What libraries read once, when they are loaded or imported: a warm process has read it already.
_READ_ONCE = re.compile(r"LD_|PYTHON|HF_|TRANSFORMERS_|TORCH_|OMP_|MKL_|PREFECT_LOGGING_|DO_NOT_TRACK$|HOME$")
# What a command sets for itself where the user has not, and lm-eval when it is imported: a test that ran one in its own
# process has them from then on.
_SET_ANYWAY = {**surroundings.SETTINGS, "HF_XET_HIGH_PERFORMANCE": "1"}
# A run would wait up to a second for the thread that sends them; where ImPart starts the server, it sends none.
NO_HEARTBEATS: Mapping[Any, None] = {"flows.heartbeat_frequency": None}
_lock = threading.Lock()
# Whose exit codes every start of a process looks for, in whatever thread: but such a code can be read once only.
_children: set[Any] = getattr(multiprocessing.process, "_children")  # noqa: B009


@cache
def _started() -> dict[str, str]:
    """Start the warm process; return the environment that it read."""
    read = dict(os.environ)
    forkserver.ensure_running()
    return read


@contextmanager
def as_found() -> Iterator[None]:
    """Let the block leave what libraries read once as it was: Ray sets such a variable, and no command would fit."""
    before = _read_once()
    yield
    for name in _read_once().keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


def _read_once() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if _READ_ONCE.match(name)}


def fits(environment: Environment) -> bool:
    """Return whether a process forked from the warm one can take this whole environment for its own."""
    with _lock:
        read = _started()
    return all(
        environment.get(name) in (read.get(name), _SET_ANYWAY.get(name) if name not in read else None)
        for name in {*environment, *read}
        if _READ_ONCE.match(name)
    )


class Command:
    """A command that runs in a process of its own."""

    def __init__(
        self,
        work: Callable[..., object],
        arguments: tuple[Any, ...],
        environment: Environment,
        inherited: Mapping[str, str] = os.environ,
    ) -> None:
        """Start it; see `warm` and `beside`."""
        self._folder = tempfile.TemporaryDirectory()
        self._said = [Path(self._folder.name) / name for name in ("out", "err")]
        merged = {**inherited, **environment}
        self._process = _context.Process(target=_begin, args=(work, arguments, merged, self._said), daemon=True)
        with _lock:
            _started()
            self._process.start()
            _children.discard(self._process)

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
    try:
        work(*arguments)
    finally:  # as an interpreter ends, which a forked process leaves out
        threading._shutdown()
        atexit._run_exitfuncs()


def impart(*arguments: str) -> None:
    from prefect.context import refresh_global_settings_context
    from prefect.settings import temporary_settings

    from impart_flows.cli import main
    from impart_flows.cli.surroundings import prepare

    sys.argv = ["impart", *arguments]
    prepare()
    refresh_global_settings_context()
    with temporary_settings(NO_HEARTBEATS):
        main()
