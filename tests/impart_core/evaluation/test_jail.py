"""Code in the jail reaches no file, process or network outside, and takes no more than its share."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from impart_core.evaluation.jail import problem_with_jail

pytestmark = pytest.mark.faults

# As whoever runs the tests, and where that is root as an ordinary user: in a user namespace, in which root's own id has
# another number and no rights, but may read this Python; and as nobody, whose processes alone the kernel counts.
USERS = {
    "self": [],
    "ordinary": ["unshare", "--user", "--map-user=1000", "--map-group=1000"],
    "nobody": [
        *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
        *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
    ],
}
counted = pytest.mark.parametrize("attack", ["self", "nobody"], indirect=True)
Attack = Callable[..., Any]


@pytest.fixture(scope="session", autouse=True)
def has_jail() -> None:
    problem = problem_with_jail()
    if problem:
        pytest.skip(f"this machine has no jail: {problem}")


def start(user: str, token: str) -> "subprocess.Popen[str]":
    command = [*USERS[user], sys.executable, "-m", "tests.impart_core.evaluation.jailed", token]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )


def processes(token: str) -> list[int]:
    """Return the processes that a test's program and its forks are."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if token.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:  # it has ended
            continue
    return found


def need(user: str) -> None:
    """Skip a test where one cannot become another user."""
    if USERS[user] and not (shutil.which(USERS[user][0]) and os.geteuid() == 0):
        pytest.skip("this is an ordinary user, or the command that makes one is missing")


@pytest.fixture(params=["self", "ordinary"])
def attack(request: pytest.FixtureRequest) -> Iterator[Attack]:
    """Runs code in a jail; afterwards nothing of it is left."""
    need(request.param)
    token = uuid.uuid4().hex

    def run(source: str, seconds: float = 60.0, **names: str) -> Any:
        process = start(request.param, token)
        out, err = process.communicate(json.dumps({"source": source, "seconds": seconds, "names": names}) + "\n")
        assert process.returncode == 0, err
        return json.loads(out)

    yield run
    assert processes(token) == []


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_text("untouched")
    file.chmod(0o666)
    tmp_path.chmod(0o777)
    return file


def tried(attack: Attack, source: str, **names: str) -> str:
    """Return the error that a statement fails with in the jail."""
    text = f"try:\n    {source}\n    result = 'done'\nexcept BaseException as error:\n    result = type(error).__name__"
    return str(attack(text, **names)["value"])


def test_harmless_code_runs(attack: Attack) -> None:
    source = "import json, subprocess\nopen('a', 'w').write('b')\n"
    source += "result = [open('a').read(), subprocess.run(['sh', '-c', 'echo c'], capture_output=True).stdout.decode()]"
    assert attack(source) == {"value": ["b", "c\n"]}


@pytest.mark.parametrize(
    "source",
    [
        "open(secret).read()",
        "open(secret, 'w')",
        "os.unlink(secret)",
        "os.chmod(secret, 0)",
        "os.rename(secret, 'mine')",
        "os.open('..' + '/..' * 40 + secret, 0)",
        "os.open(secret, 0, dir_fd=[fd for fd in range(3, 256) if os.path.isdir(f'/dev/fd/{fd}')][0])",
        "os.listdir(home)",
        "os.listdir('/proc')",
        "os.listdir('/sys')",
        "open('/etc/passwd')",
        "open('/etc/shadow')",
        "open('/dev/mem')",
        "open('/dev/tty')",
        "open('/usr/written', 'w')",
        "open('/written', 'w')",
        "os.mkdir('/tmp/written') or open('/tmp/../written', 'w')",
        "os.unlink(os.__file__)",
        "os.mknod('device', 0o60666, os.makedev(8, 0)) or open('device')",
    ],
)
def test_files_outside_are_out_of_reach(attack: Attack, secret: Path, source: str) -> None:
    assert tried(attack, source, secret=str(secret), home=str(Path.home() / ".cache")).endswith("Error")
    assert secret.read_text() == "untouched"
    assert secret.stat().st_mode & 0o777 == 0o666


@pytest.mark.parametrize(
    "source",
    [
        "os.setuid(0) or os.chroot('.')",
        "os.chroot('.')",
        "os.nice(-5)",
        "os.sethostname('a')" if hasattr(os, "sethostname") else "import socket; socket.sethostname('a')",
        "import resource; resource.setrlimit(resource.RLIMIT_NPROC, (4096, 4096))",
        "import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0",
        "import ctypes; assert ctypes.CDLL(None).unshare(0x20000) == 0",
        "import ctypes; assert ctypes.CDLL(None).mount(b'tmpfs', b'/usr', b'tmpfs', 0, None) == 0",
        "import ctypes; assert ctypes.CDLL(None).mount(None, b'/usr', None, 0x1020, None) == 0",
        "import ctypes; assert ctypes.CDLL(None).umount2(b'/usr', 2) == 0",
        "import ctypes; assert ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0",
    ],
)
def test_rights_cannot_be_taken_back(attack: Attack, source: str) -> None:
    assert tried(attack, source).endswith("Error")


def test_a_program_that_changes_the_user_gives_no_rights(attack: Attack) -> None:
    source = """
import subprocess
script = "cp /bin/sh x; chmod 6755 x; ./x -p -c 'id -u; id -ru; grep -c . /etc/shadow'"
result = subprocess.run(["sh", "-c", script], capture_output=True, text=True).stdout.split()
"""
    effective, real = attack(source)["value"]
    assert effective == real != "0"


def test_there_is_no_network(attack: Attack, tmp_path: Path) -> None:
    with socket.socket() as server, socket.socket(socket.AF_UNIX) as local, socket.socket(socket.AF_UNIX) as abstract:
        server.bind(("127.0.0.1", 0))
        local.bind(str(tmp_path / "s"))
        name = f"\0impart-{uuid.uuid4().hex}"
        abstract.bind(name)
        for one in (server, local, abstract):
            one.listen()
        connect = "import socket; socket.create_connection((host, int(port)), 5)"
        port = str(server.getsockname()[1])
        assert tried(attack, connect, host="127.0.0.1", port=port) in ("OSError", "ConnectionRefusedError")
        assert tried(attack, connect, host="192.0.2.1", port="80") == "OSError"
        path = "import socket; socket.socket(socket.AF_UNIX).connect(path)"
        assert tried(attack, path, path=str(tmp_path / "s")) == "FileNotFoundError"
        assert tried(attack, path, path=name) == "ConnectionRefusedError"


@pytest.mark.parametrize("target", ["os.getppid()", "0", "-1", "1", "int(outside)"])
def test_signals_stay_inside(attack: Attack, target: str) -> None:
    sleeper = subprocess.Popen(["sleep", "600"])
    try:
        source = f"import signal\ntry: os.kill({target}, signal.SIGKILL)\nexcept OSError: pass\nresult = os.getpgrp()"
        assert attack(source, outside=str(sleeper.pid)) == {"value": 1}  # process 1 is not killed from inside either
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()


def test_nothing_that_was_open_is_open(attack: Attack) -> None:
    source = (
        "import stat\nresult = []\nfor fd in range(256):\n    try: result.append(stat.S_IFMT(os.fstat(fd).st_mode))\n"
    )
    kinds = attack(source + "    except OSError: pass")["value"]
    assert len(kinds) == 4  # three times /dev/null, and the pipe for the reply
    assert 0o040000 not in kinds


@counted
@pytest.mark.parametrize(
    "source",
    [
        "while True:\n    try: os.fork()\n    except OSError: pass",
        "import _thread, time\nwhile True: _thread.start_new_thread(time.sleep, (99,))",
    ],
)
def test_many_processes_are_ended(attack: Attack, source: str) -> None:
    assert "error" in attack(source, seconds=3.0)


@pytest.mark.parametrize(
    "source",
    [
        "while True: pass",
        "import time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(600)\ntime.sleep(600)",
        "import signal, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\ntime.sleep(600)",
        "import ctypes, time\nctypes.CDLL(None).prctl(1, 0, 0, 0, 0)\ntime.sleep(600)",
    ],
)
def test_what_does_not_end_is_ended_with_all_its_processes(attack: Attack, source: str) -> None:
    assert "error" in attack(source, seconds=3.0)


def test_a_process_that_was_left_behind_ends_with_the_function(attack: Attack) -> None:
    assert attack("import time\nif os.fork() == 0: time.sleep(600)\nresult = 5") == {"value": 5}


@counted
def test_processes_are_few(attack: Attack) -> None:
    source = "import time\nresult = 0\ntry:\n    while result < 999:\n        if os.fork() == 0: time.sleep(600)\n"
    assert 16 < attack(source + "        result += 1\nexcept OSError: pass")["value"] <= 64


@pytest.mark.parametrize(
    "source",
    ["bytearray(3 * 2**30)", "[bytearray(2**24) for _ in range(200)]", "import mmap; mmap.mmap(-1, 3 * 2**30)"],
)
def test_memory_is_limited(attack: Attack, source: str) -> None:
    assert tried(attack, source) in ("MemoryError", "OSError")


@pytest.mark.parametrize("folder", [".", "/dev/shm"])
def test_files_are_limited(attack: Attack, folder: str) -> None:
    source = f"[open(f'{folder}/{{i}}', 'wb').write(bytes(2**20)) for i in range(100)]"
    assert tried(attack, source) == "OSError"


@pytest.mark.parametrize(
    "reply",
    ["b'{'", "b'7'", "b'[' * 100000", "b'{}'", "b'{\"error\": [1]}'", "bytes(2**21)", "b'\\xff'"],
)
def test_a_forged_reply_breaks_nothing(attack: Attack, reply: str) -> None:
    source = f"data = {reply}\nfor fd in range(3, 256):\n    try: os.write(fd, data)\n    except OSError: pass\n"
    assert "error" in attack(source + "os._exit(0)")


@pytest.mark.parametrize("user", ["self", "ordinary"])
def test_the_jail_ends_when_whoever_asked_is_killed(user: str) -> None:
    need(user)
    token = uuid.uuid4().hex
    process = start(user, token)
    assert process.stdin is not None
    process.stdin.write(json.dumps({"source": "while True: pass", "seconds": 600, "names": {}}) + "\n")
    while len(processes(token)) < 3:  # the program, the one that watches, and process 1 of the jail
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    while processes(token):
        time.sleep(0.05)
