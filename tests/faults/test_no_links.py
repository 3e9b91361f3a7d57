"""Stores on file systems without hard links, as exFAT, many SMB shares and FUSE mounts are.

None can be mounted where tests run: the C library's calls answer as such file systems do.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import Environment, run_json

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not shutil.which("cc") or sys.platform != "linux", reason="builds a library with a C compiler"),
]

LACKING = ["link", "link,renameat2"]
ALL = "link,renameat2,flock"
WRITERS, NAMES = 6, 60
# One of many writers of the same names: says which it got. What it finds under a name is always whole.
_WRITER = """
import sys
from impart_core.storage.folder import FolderObjects
folder, mine, names = sys.argv[1], sys.argv[2], int(sys.argv[3])
objects = FolderObjects(folder, folder)
print("ready", flush=True)
sys.stdin.readline()
for number in range(names):
    if objects.create(f"refs/{number}", mine.encode() * 1000):
        print(number)
    found = objects.read(f"refs/{number}", 1 << 20)
    assert len(found) == 1000 * len(mine) and len(set(found.decode())) == 1, found
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What takes calls away from a process that it is loaded into."""
    built = tmp_path_factory.mktemp("lacking") / "lacking.so"
    source = Path(__file__).with_name("lacking.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(built), str(source), "-ldl"], check=True)
    return built


def without(library: Path, calls: str) -> Environment:
    return {"LD_PRELOAD": str(library), "LACKING": calls}


@pytest.mark.parametrize("calls", LACKING)
def test_of_many_processes_that_create_a_name_one_wins(calls: str, library: Path, tmp_path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path), str(number), str(NAMES)],
            env={**os.environ, "LD_PRELOAD": str(library), "LACKING": calls},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(WRITERS)
    ]
    for writer in writers:
        assert writer.stdout
        assert writer.stdout.readline() == "ready\n"
    won: dict[str, str] = {}
    for writer in writers:
        assert writer.stdin
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for number, writer in enumerate(writers):
        out, err = writer.communicate()
        assert writer.returncode == 0, err
        for name in out.split():
            assert name not in won
            won[name] = str(number)
    assert won == {str(name): (tmp_path / "refs" / str(name)).read_text()[0] for name in range(NAMES)}
    assert len(list((tmp_path / "refs").iterdir())) == NAMES  # no scratch is left


@pytest.mark.parametrize("calls", LACKING)
def test_names_move_in_such_a_store(
    calls: str, library: Path, pair: tuple[Path, Path], tmp_path: Path, environment: Environment
) -> None:
    here = {**environment, **without(library, calls), "IMPART_STORE": str(tmp_path / "store")}
    made = run_json("compress", *map(str, pair), "--cr", "4", "--name", "pair", environment=here)
    assert run_json("tag", "pair", "pair@prod", environment=here)["id"] == made["artifact"]
    assert run_json("verify", "--all", environment=here)["ok"]


def test_a_file_system_that_has_no_way_is_named_with_the_reason(library: Path, tmp_path: Path) -> None:
    folder = str(tmp_path / "store")
    writer = [sys.executable, "-c", _WRITER, folder, "1", "1"]
    done = subprocess.run(
        writer,
        env={**os.environ, "LD_PRELOAD": str(library), "LACKING": ALL},
        input="go\n",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert f"StoreError: Cannot write to the store {folder}: its file system has no hard links" in done.stderr
