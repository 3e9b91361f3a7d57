"""The restricted child: evaluates expressions that nobody has read, one short-lived fork for each request.

It is started as `python -I -S worker.py` with an empty environment in an empty folder and uses nothing but
the standard library. A request is one JSON line {"source", "inputs", "seconds"}; a reply is one JSON line
{"values": [...]} or {"error": "..."}. The fork that evaluates has no built-ins that reach outside, hard limits
on processor time, memory and files, and an audit hook that ends it at the first attempt to open, import,
connect or start anything. The hook catches what a limit cannot (root may always fork), the limits catch what
raises no audit event.
"""

import builtins
import json
import os
import resource
import select
import signal
import sys
import time

MEMORY_BYTES = 256 * 2**20
REPLY_BYTES = 65536
FORBIDDEN = (
    "open", "import", "compile", "ctypes.", "os.", "pty.", "socket.", "subprocess.", "shutil.", "signal.",
    "sys._getframe", "gc.", "mmap.", "fcntl.", "resource.", "syslog.", "tempfile.", "glob.", "pathlib.", "marshal.",
    "code.__new__", "function.__new__", "cpython.", "builtins.input",
)  # fmt: skip
NAMES = (
    "abs all any bool dict divmod enumerate filter float int len list map max min pow range repr reversed "
    "round set sorted str sum tuple zip"
)
BUILTINS = {name: getattr(builtins, name) for name in NAMES.split()}


def refuse(event: str, _: object) -> None:
    """Audit hook: end the process at an event that reaches outside of it."""
    if event.startswith(FORBIDDEN):
        os._exit(13)


def limit(seconds: float) -> None:
    """Give up files, processes, most memory and time."""
    limits = {
        resource.RLIMIT_CPU: int(seconds) + 1,
        resource.RLIMIT_AS: MEMORY_BYTES,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 0,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    for which, value in limits.items():
        resource.setrlimit(which, (value, value))


def evaluate(source: str, inputs: list[object], seconds: float, reply: int) -> None:
    """Evaluate the source with x set to each input, and write the values; runs in the fork, never returns."""
    try:
        limit(seconds)
        code = compile(source, "answer", "eval")
        sys.addaudithook(refuse)
        values = [eval(code, {"__builtins__": BUILTINS, "x": value}) for value in inputs]  # noqa: S307
        message = json.dumps({"values": values})
    except BaseException as error:
        message = json.dumps({"error": type(error).__name__})
    os.write(reply, message.encode()[:REPLY_BYTES])
    os._exit(0)


def collect(reader: int, deadline: float) -> bytes:
    """Read the fork's reply until it closes its end, or the deadline, or too many bytes."""
    data = b""
    while len(data) < REPLY_BYTES:
        ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
        part = os.read(reader, REPLY_BYTES) if ready else b""
        if not part:
            break
        data += part
    return data


def answer(request: dict[str, object]) -> dict[str, object]:
    """Serve one request in a fork, which is dead when this returns."""
    reader, writer = os.pipe()
    seconds = float(request["seconds"])  # type: ignore[arg-type]
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.close(0)
        os.close(1)
        evaluate(request["source"], request["inputs"], seconds, writer)  # type: ignore[arg-type]
    os.close(writer)
    data = collect(reader, time.monotonic() + seconds)
    os.close(reader)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    try:
        return dict(json.loads(data))
    except ValueError:
        return {"error": "ended without a reply"}


def main() -> None:
    """Serve requests until standard input ends."""
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
