"""A compression that is killed or stopped half-way: what was finished is kept, and nothing is left running."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import MATRICES
from tests.faults.warm import warm
from tests.support import Environment, data_files, halt_when, manifests, run_json, start_impart, whole_files

pytestmark = pytest.mark.faults

Arguments = Callable[..., list[str]]
UNFINISHED = "it was over before it could be stopped; the model must be larger"


def stop_half_way(
    arguments: list[str],
    store: Path,
    how: signal.Signals,
    environment: Environment,
    kind: str = "block",
) -> tuple[int, str]:
    """Send a compression a signal once three blocks are published, or the factors of three.

    Returns:
        Its exit code and standard error.
    """
    with warm(*arguments, environment=environment) as command:
        halt_when(lambda: len(manifests(store, kind)) >= 3, command.send, lambda: command.running)
        command.send(how)
        command.send(signal.SIGCONT)
        done = command.wait()
    return done.returncode, done.stderr


def assert_resumes(arguments: list[str], store: Path, undisturbed: Path, environment: Environment) -> None:
    """Check that the second run reuses what the first one finished, and ends where an undisturbed one does."""
    blocks, factors = manifests(store, "block"), manifests(store, "factors")
    assert len(blocks) < 9, UNFINISHED
    finished = {**blocks, **factors}
    before = {path: path.stat().st_mtime_ns for made in finished for path in (store / "artifacts" / made).iterdir()}
    report = run_json(*arguments, environment=environment)
    assert report["cached_blocks"] == len(blocks)
    assert report["blocks"] == 9
    done = {name["content"]["name"] for name in blocks.values()}
    waiting = [made["content"] for made in factors.values() if made["content"]["name"] not in done]
    assert report["reused_factors"] == sum(len(content["matrices"]) for content in waiting)
    assert report["decompositions"] == MATRICES - 7 * len(done - {"outside"}) - report["reused_factors"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert whole_files(store) == data_files(undisturbed)
    assert run_json("verify", report["artifact"], "--store", str(store))["ok"]


def test_a_killed_run_goes_on_where_it_was(
    compress_large: Arguments, undisturbed: Path, environment: Environment, tmp_path: Path
) -> None:
    arguments = compress_large(tmp_path, "--workers", "1")
    code, _ = stop_half_way(arguments, tmp_path, signal.SIGKILL, environment)
    assert code == -signal.SIGKILL
    assert len(manifests(tmp_path, "block")) >= 3
    assert_resumes(arguments, tmp_path, undisturbed, environment)


def test_a_run_killed_while_it_decomposes_goes_on_from_the_factors_that_it_published(
    compress_large: Arguments, undisturbed: Path, environment: Environment, tmp_path: Path
) -> None:
    arguments = compress_large(tmp_path, "--workers", "2")
    code, _ = stop_half_way(arguments, tmp_path, signal.SIGKILL, environment, kind="factors")
    assert code == -signal.SIGKILL
    assert len(manifests(tmp_path, "factors")) > len(manifests(tmp_path, "block"))
    assert_resumes(arguments, tmp_path, undisturbed, environment)


def test_a_run_without_factors_that_was_killed_ends_with_the_same_bytes(
    compress_large: Arguments, undisturbed: Path, environment: Environment, tmp_path: Path
) -> None:
    arguments = compress_large(tmp_path, "--workers", "1", "--no-keep-factors")
    code, _ = stop_half_way(arguments, tmp_path, signal.SIGKILL, environment)
    assert code == -signal.SIGKILL
    finished = manifests(tmp_path)
    assert 3 <= len(finished) < 9, UNFINISHED
    report = run_json(*arguments, environment=environment)
    assert (report["cached_blocks"], report["decompositions"]) == (len(finished), 0)
    assert whole_files(tmp_path) == data_files(undisturbed, "block")


def test_ctrl_c_ends_with_a_sentence_and_keeps_finished_blocks(
    compress_large: Arguments, undisturbed: Path, environment: Environment, tmp_path: Path
) -> None:
    arguments = compress_large(tmp_path, "--workers", "1")
    code, said = stop_half_way(arguments, tmp_path, signal.SIGINT, environment)
    assert code == 130
    assert len(manifests(tmp_path, "block")) >= 3
    assert said.splitlines()[-1] == "Stopped. Finished blocks are kept; run the same command again to go on."
    assert "Traceback" not in said
    assert_resumes(arguments, tmp_path, undisturbed, environment)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes under /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_the_embedded_server_ends_with_its_command(
    how: signal.Signals, compress_large: Arguments, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.getbasetemp() / "embedded-prefect"  # its database is made once
    alone: Environment = {"PREFECT_API_URL": None, "PREFECT_HOME": str(home)}
    process = start_impart(*compress_large(tmp_path, "--workers", "1"), environment=alone)
    try:
        halt_when(lambda: manifests(tmp_path), process.send_signal, lambda: process.poll() is None)
        assert servers_of(home)
        process.send_signal(how)
        process.send_signal(signal.SIGCONT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode in (130, -how), UNFINISHED
    assert "Traceback" not in said
    assert "Error" not in said
    deadline = time.monotonic() + 30
    while servers_of(home):
        assert time.monotonic() < deadline, "the server outlived its command"
        time.sleep(0.1)


def servers_of(home: Path) -> list[str]:
    """Return the process ids of the Prefect servers with this home."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environ, command = (process / "environ").read_bytes(), (process / "cmdline").read_bytes()
        except OSError:  # it ended meanwhile
            continue
        if f"PREFECT_HOME={home}\0".encode() in environ and b"uvicorn.Server" in command:
            found.append(process.name)
    return found
