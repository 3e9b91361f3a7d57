"""Commands forked from a warm process, as most tests run them, are those that users start."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.faults import warm
from tests.support import run_impart, start_impart

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("typed", ["ls --store /nowhere/store", "compress a b --cr 4 --json", "methods impart"])
def test_a_forked_command_ends_as_one_that_starts_from_nothing(typed: str) -> None:
    process = start_impart(*typed.split())
    forked = run_impart(*typed.split())
    assert warm.fits(os.environ)
    assert (forked.stdout, forked.stderr) == process.communicate()
    assert forked.returncode == process.returncode


@pytest.mark.parametrize("name", ["LD_PRELOAD", "HF_ENDPOINT", "PYTHONPATH", "HOME"])
def test_what_is_read_at_the_start_needs_a_start(name: str) -> None:
    assert not warm.fits({**os.environ, name: "/nowhere"})
    assert warm.fits({**os.environ, "IMPART_STORE": "/nowhere", "PREFECT_HOME": "/nowhere"})


def test_what_a_test_leaves_behind_makes_no_other_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with warm.as_found():
        os.environ["PYTHONBREAKPOINT"] = "ray.util.rpdb._driver_set_trace"  # as Ray does
        os.environ["HF_HUB_OFFLINE"] = "0"
        assert not warm.fits(os.environ)
    assert warm.fits(os.environ)


def test_exit_codes_are_those_of_commands_though_others_start_meanwhile() -> None:
    def run(code: int) -> int:
        return warm.Command(os._exit, (code,), {}).wait().returncode

    codes = [1 + number % 9 for number in range(300)]
    with ThreadPoolExecutor(max_workers=8) as pool:
        assert list(pool.map(run, codes)) == codes
