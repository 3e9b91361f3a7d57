"""The parent's side of the sandbox: starts the restricted child, asks it, and kills it when it hangs."""

import atexit
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from impart_core.base.errors import EvaluationError
from impart_core.tinyzoo.sandbox.syntax import problem_with

_WORKER = Path(__file__).with_name("worker.py")
_GRACE_SECONDS = 5.0  # the child ends a request by itself; past this it is taken for dead


class Sandbox:
    """One restricted child process that evaluates expressions, each in a fork of its own."""

    def __init__(self, seconds: float = 1.0) -> None:
        """Make a sandbox; its process starts with the first request.

        Args:
            seconds: wall-clock time that one request may take; twice that much processor time at most.
        """
        self._seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def run(self, source: str, inputs: Sequence[Any]) -> dict[str, Any]:
        """Evaluate an expression with x set to each input, without looking at the expression first.

        Args:
            source: a Python expression in x.
            inputs: values for x that JSON can hold.

        Returns:
            {"values": [...]}, one for each input, or {"error": what went wrong}.

        Raises:
            EvaluationError: the child process cannot be started.
        """
        request = json.dumps({"source": source, "inputs": list(inputs), "seconds": self._seconds})
        with self._lock:
            try:
                return _exchange(self._started(), request, self._seconds + _GRACE_SECONDS)
            except (OSError, ValueError) as error:
                self.close()
                return {"error": f"the restricted process died: {error}"}

    def close(self) -> None:
        """Kill the child and remove its folder."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _started(self) -> "subprocess.Popen[str]":
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._folder = tempfile.TemporaryDirectory(prefix="impart-sandbox-")
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(_WORKER)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    env={},
                    cwd=self._folder.name,
                    start_new_session=True,
                )
            except OSError as error:
                raise EvaluationError(f"The restricted Python process cannot be started: {error}.") from error
        return self._process

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _exchange(process: "subprocess.Popen[str]", request: str, seconds: float) -> dict[str, Any]:
    """Send one line and wait for one line.

    Raises:
        OSError: the process has gone, or does not reply in time.
        ValueError: its reply is not JSON.
    """
    to_child, from_child = _pipe(process.stdin), _pipe(process.stdout)
    to_child.write(request + "\n")
    to_child.flush()
    ready, _, _ = select.select([from_child], [], [], seconds)
    if not ready:
        raise TimeoutError(f"no reply within {seconds:g} s")
    return dict(json.loads(from_child.readline()))


def _pipe(pipe: IO[str] | None) -> IO[str]:
    if pipe is None:
        raise BrokenPipeError("no pipe to the process")
    return pipe


@cache
def _shared(process_id: int) -> Sandbox:  # noqa: ARG001  a fork of this process must not share its pipes
    sandbox = Sandbox()
    atexit.register(sandbox.close)
    return sandbox


def evaluate_expression(source: str, inputs: Sequence[Any]) -> list[Any] | None:
    """Evaluate an expression that a model wrote, with x set to each input, in this process's sandbox.

    Args:
        source: the text; what is not a short expression of x is refused without starting anything.
        inputs: values for x that JSON can hold.

    Returns:
        One value for each input; None when the text was refused, failed, ran out of time or memory, or
        tried to reach outside.

    Raises:
        EvaluationError: the child process cannot be started.
    """
    if problem_with(source) is not None:
        return None
    values = _shared(os.getpid()).run(source.strip(), inputs).get("values")
    return values if isinstance(values, list) else None
