"""A clock that jumps by a day, forward and back: a folder is not impressed, S3 refuses, and nothing is deleted."""

import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.conftest import Wanted
from tests.faults.places import Place, assert_whole, manifests_in
from tests.faults.tally import Tally
from tests.faults.warm import run_warm, warm_json
from tests.support import Environment, halt_when, run_impart, start_impart

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not shutil.which("cc") or sys.platform != "linux", reason="builds a clock with a C compiler"),
]

Pair = tuple[Path, Path]
DAY = 24 * 3600


class Clock:
    """The time of day as commands see it."""

    def __init__(self, library: Path, shift: Path) -> None:
        """Begin with the right time."""
        self._shift = shift
        self._shift.write_bytes(bytes(8))
        self.environment: Environment = {"LD_PRELOAD": str(library), "CLOCK_SHIFT": str(shift)}

    def jump(self, seconds: int) -> None:
        """Let it be wrong by so much from now on."""
        with self._shift.open("r+b") as file:
            file.write(struct.pack("=q", seconds))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What shifts the time of a process that it is loaded into."""
    built = tmp_path_factory.mktemp("clock") / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(built), str(source)], check=True)
    return built


@pytest.fixture
def clock(library: Path, tmp_path: Path) -> Clock:
    """A clock that is right so far."""
    made = Clock(library, tmp_path / "shift")
    told = "import time, datetime; print(time.time(), datetime.datetime.now().timestamp())"
    made.jump(DAY)
    done = subprocess.run(
        [sys.executable, "-c", told], env={**os.environ, **made.environment}, capture_output=True, text=True, check=True
    )
    assert all(abs(float(number) - time.time() - DAY) < 60 for number in done.stdout.split())
    made.jump(0)
    return made


def jump_in_run(
    arguments: list[str], place: Place, clock: Clock, jumps: tuple[int, ...]
) -> subprocess.CompletedProcess[str]:
    """Run a compression whose clock jumps each time that two more blocks are published."""
    process = start_impart(*arguments, environment={**place.environment, **clock.environment})
    try:
        for number, jump in enumerate(jumps, 1):
            halt_when(
                lambda count=2 * number: len(manifests_in(place.objects(), "block")) >= count,
                process.send_signal,
                lambda: process.poll() is None,
            )
            clock.jump(jump)
            process.send_signal(signal.SIGCONT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return subprocess.CompletedProcess("impart", process.returncode, out, err)


def test_a_folder_is_not_impressed(
    large_pair: Pair, wanted_large: Wanted, in_folder: Place, clock: Clock, count: Tally
) -> None:
    run = ["compress", *map(str, large_pair), "--cr", "4", "--store", in_folder.url, "--workers", "1", "--json"]
    done = jump_in_run(run, in_folder, clock, (DAY, -DAY))
    assert done.returncode == 0, done.stderr
    objects = assert_whole(in_folder, wanted_large)
    for jump in (DAY, -DAY):
        clock.jump(jump)
        collected = ["gc", "--delete", "--store", in_folder.url]
        assert run_impart(*collected, environment={**in_folder.environment, **clock.environment}).returncode == 0
        assert assert_whole(in_folder, wanted_large).keys() == objects.keys()
    count("jumps of the clock on a folder", 4)
    report = warm_json(*run[:-1], environment=in_folder.environment)
    assert (report["cached_blocks"], report["remade"]) == (9, [])


@pytest.mark.parametrize("days", [1, -1])
def test_files_dated_by_a_wrong_clock_are_not_collected(
    days: int, pair: Pair, wanted: Wanted, in_folder: Place, count: Tally
) -> None:
    warm_json("compress", *map(str, pair), "--cr", "4", "--store", in_folder.url, environment=in_folder.environment)
    dated = time.time() + days * DAY
    for path in Path(in_folder.url).rglob("*"):
        os.utime(path, (dated, dated))
    done = run_warm("gc", "--delete", "--store", in_folder.url, environment=in_folder.environment)
    assert done.returncode == 0, done.stderr
    count("stores dated by a wrong clock")
    assert_whole(in_folder, wanted)


def test_s3_refuses_a_wrong_clock_with_a_sentence_and_goes_on_with_a_right_one(
    large_pair: Pair, wanted_large: Wanted, in_s3: Place, clock: Clock, count: Tally
) -> None:
    run = ["compress", *map(str, large_pair), "--cr", "4", "--store", in_s3.url, "--workers", "1", "--json"]
    wrong: Environment = {**in_s3.environment, **clock.environment}
    done = jump_in_run(run, in_s3, clock, (DAY,))
    assert_says_that_the_clock_is_wrong(done, in_s3)
    blocks = len(manifests_in(in_s3.objects(), "block"))
    assert 2 <= blocks < 9
    clock.jump(-DAY)
    assert_says_that_the_clock_is_wrong(run_impart(*run, environment=wrong), in_s3)
    assert_says_that_the_clock_is_wrong(run_impart("gc", "--delete", "--store", in_s3.url, environment=wrong), in_s3)
    count("jumps of the clock on S3", 3)
    report = warm_json(*run[:-1], environment=in_s3.environment)
    assert (report["cached_blocks"], report["remade"]) == (blocks, [])
    assert_whole(in_s3, wanted_large)


def assert_says_that_the_clock_is_wrong(done: subprocess.CompletedProcess[str], place: Place) -> None:
    """Check that a command ended with exit code 2 and a sentence about the clock."""
    assert done.returncode == 2, done.stderr
    assert f"error: The store {place.url} refuses this" in done.stderr, done.stderr
    assert "Set the clock of this machine" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
