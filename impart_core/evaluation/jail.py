"""Runs a function in a process without rights, where code that a model wrote may do what it likes.

The process is a fork in namespaces of its own: it sees no other process, no network, and of the files only Python and
the system's programs, read-only, besides an empty folder in memory. It has no capabilities, limited processor time,
memory, files and processes, and is killed with all that it started when the function returns or its time is over.
"""

import contextlib
import json
import os
import pwd
import resource
import select
import signal
import site
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impart_core.evaluation.namespaces import (
    build_root,
    drop_rights,
    enter_namespaces,
    forbid_namespaces,
)

MEMORY_BYTES = 2**30  # that a process may take besides what the fork started with
FOLDER_BYTES = 64 * 2**20
PROCESSES = 64
REPLY_BYTES = 2**20
_SYSTEM = (
    "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/usr", "/nix/store", "/etc/ld.so.cache", "/etc/alternatives",
    "/etc/localtime",
)  # fmt: skip


class JailError(Exception):
    """The function did not run in the jail, or gave no reply; the message says why."""


@dataclass(frozen=True)
class Jail:
    """A place to run functions in.

    Attributes:
        root: an empty folder, on which the jail's root is mounted.
        work: the folder that can be written there; what the function leaves in it is gone afterwards.
        visible: what can be read there besides Python and the system's programs.
    """

    root: Path
    work: Path
    visible: tuple[Path, ...] = ()

    def run(self, function: Callable[[], Any], seconds: float) -> Any:
        """Return what a function returns in the jail.

        Args:
            function: what to run; its value must be one that JSON can hold.
            seconds: wall-clock time that it may take.

        Raises:
            JailError: the jail cannot be made, the function raised, or it was killed.
        """
        reader, writer = os.pipe()
        held, lifeline = os.pipe()  # closed by this process, or by its end
        outer = os.fork()
        if outer == 0:
            os.close(reader)
            os.close(lifeline)
            self._enter(function, seconds, writer, held)
        os.close(writer)
        os.close(held)
        try:
            data = _collect(reader, time.monotonic() + seconds)
        finally:
            os.close(reader)
            os.close(lifeline)
            os.waitpid(outer, 0)
        return _read_reply(data)

    def _enter(self, function: Callable[[], Any], seconds: float, writer: int, held: int) -> None:
        """Enter the namespaces, and watch over the fork that is process 1 in them; never returns."""
        try:
            enter_namespaces()
            inner = os.fork()
            if inner == 0:
                _reply(writer, lambda: self._run_as_first(function, seconds, writer))
            os.close(writer)
            select.select([held, os.pidfd_open(inner)], [], [])
            os.kill(inner, signal.SIGKILL)  # the kernel kills all other processes of the jail with it
            os.waitpid(inner, 0)
        except BaseException as error:
            _write(writer, _problem(error))
        finally:
            os._exit(0)

    def _run_as_first(self, function: Callable[[], Any], seconds: float, writer: int) -> Any:
        os.setsid()  # or a signal to its process group would reach outside
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        Path("/proc/self/oom_score_adj").write_text("1000")  # where memory is full, the kernel kills the jail first
        forbid_namespaces()
        build_root(self.root, [*_python_folders(), *self.visible], self.work, FOLDER_BYTES)
        _close_all_but(writer)
        limits = {
            resource.RLIMIT_CPU: int(seconds) + 1,
            resource.RLIMIT_AS: size + MEMORY_BYTES,
            resource.RLIMIT_FSIZE: FOLDER_BYTES,
            resource.RLIMIT_NPROC: PROCESSES,
            resource.RLIMIT_NOFILE: 256,
            resource.RLIMIT_CORE: 0,
        }
        drop_rights(limits)
        return function()


def _reply(writer: int, function: Callable[[], Any]) -> None:
    """Write what a function returns or raises, and end the process, whatever becomes of the writing."""
    try:
        try:
            reply = {"value": function()}
            message = json.dumps(reply, default=float)
        except BaseException as error:
            message = _problem(error)
        _write(writer, message)
    finally:
        os._exit(0)


def _problem(error: BaseException) -> str:
    return json.dumps({"error": f"{type(error).__name__}: {error}"[:1000]})


def _write(writer: int, message: str) -> None:
    data = message.encode()
    while data:
        data = data[os.write(writer, data) :]


def _read_reply(data: bytes) -> Any:
    """Return the value of a reply, which whatever ran in the jail may have written.

    Raises:
        JailError: there is no value in it.
    """
    try:
        reply = json.loads(data)
        if "value" in reply:
            return reply["value"]
        problem = str(reply["error"])
    except (ValueError, TypeError, LookupError, RecursionError):
        problem = "its process was killed" if len(data) < REPLY_BYTES else "its reply is too long"
    raise JailError(problem)


def _collect(reader: int, deadline: float) -> bytes:
    data = b""
    while len(data) < REPLY_BYTES:
        ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
        part = os.read(reader, REPLY_BYTES - len(data)) if ready else b""
        if not part:
            break
        data += part
    return data


def _close_all_but(writer: int) -> None:
    """Close what was open outside, which would lead out, and give the standard streams to /dev/null."""
    null = os.open("/dev/null", os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    open_files = os.sysconf("SC_OPEN_MAX")
    os.closerange(3, writer)
    os.closerange(writer + 1, open_files)


def _python_folders() -> list[Path]:
    """Return the system's programs and the folders that Python imports from, but none that a home folder lies in."""
    package = Path(__file__).parents[1]
    own = [sys.prefix, sys.exec_prefix, sys.base_prefix, *site.getsitepackages(), *sys.path, str(package)]
    homes = [Path(place) / "any" for place in ("/home", "/root", tempfile.gettempdir())]
    with contextlib.suppress(KeyError):  # HOME may say anything
        homes.append(Path(pwd.getpwuid(os.getuid()).pw_dir) / "any")
    found = [Path(place).absolute() for place in own if place]
    kept = [place for place in found if not any(home.is_relative_to(place) for home in homes)]
    return [*map(Path, _SYSTEM), *_outermost(kept)]


def _outermost(places: Iterable[Path]) -> list[Path]:
    kept: list[Path] = []
    for place in sorted(set(places)):
        if not any(place.is_relative_to(other) for other in kept):
            kept.append(place)
    return kept


def problem_with_jail() -> str | None:
    """Say why this machine has no jail, after trying one in a process of its own; None where it has."""
    if not sys.platform.startswith("linux"):
        return f"namespaces are a part of Linux, and this is {sys.platform}"
    program = f"import sys; from {__name__} import try_out; sys.exit(try_out())"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else (done.stdout.strip() or done.stderr.strip()[-300:])


def try_out() -> int:
    """Try a jail in this process; print why there is none, and return the exit code."""
    with tempfile.TemporaryDirectory(prefix="impart-jail-") as folder:
        jail = Jail(Path(folder) / "root", Path(folder) / "work")
        jail.root.mkdir()
        jail.work.mkdir()
        try:
            # A shell shows that programs start, that processes can be made, and that the folder can be written.
            jail.run(lambda: subprocess.run(["sh", "-c", "echo > written & wait"], check=True).returncode, 30.0)
        except JailError as error:
            print(error)
            return 1
    return 0
