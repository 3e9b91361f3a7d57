"""The S3 server killed and started again, at once and after half a minute, while commands write to it and read it."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from impart_core.base.files import sha256_of
from tests.faults.conftest import Wanted
from tests.faults.places import Place, assert_whole, unique
from tests.faults.tally import Tally
from tests.faults.warm import Command, run_warm, wait_until, warm, warm_json
from tests.s3proxy import S3Proxy
from tests.servers import S3Server
from tests.support import Environment, manifests

pytestmark = pytest.mark.faults

Pair = tuple[Path, Path]
WRITES = 2 * (9 + 8 + 1)  # blocks, factors and the delta


@pytest.fixture
def published(large_pair: Pair, in_s3: Place) -> Place:
    """A store in S3 with the delta `whole`."""
    run = ["compress", *map(str, large_pair), "--cr", "4", "--name", "whole", "--store", in_s3.url]
    warm_json(*run, environment=in_s3.environment)
    return in_s3


@pytest.fixture(scope="module")
def rebuilt_undisturbed(
    large_pair: Pair, undisturbed: Path, environment: Environment, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """The files of the model that is rebuilt while nothing happens, with their SHA-256."""
    out = tmp_path_factory.mktemp("rebuilt") / "out"
    (artifact,) = manifests(undisturbed, "delta")
    place = ["--base", str(large_pair[0]), "--out", str(out), "--store", str(undisturbed)]
    warm_json("reconstruct", artifact, *place, environment=environment)
    return {path.name: sha256_of(path) for path in out.iterdir()}


@pytest.fixture
def start(s3_to_break: S3Server) -> Iterator[Callable[..., tuple[Command, S3Proxy]]]:
    """Starts a command on a store through a proxy of its own."""
    with ExitStack() as stack:

        def begin(place: Place, *arguments: str) -> tuple[Command, S3Proxy]:
            proxy = stack.enter_context(S3Proxy(s3_to_break.variables["AWS_ENDPOINT_URL"]))
            environment = {**place.environment, "AWS_ENDPOINT_URL": proxy.url}
            command = stack.enter_context(warm(*arguments, "--store", place.url, "--json", environment=environment))
            return command, proxy

        yield begin


def has_seen(proxy: S3Proxy, method: str, count: int, *status: int) -> bool:
    """Whether so many requests went through a proxy."""
    return proxy.count(method, *status) >= count


@pytest.mark.parametrize("gone_for", [0, 30])
def test_commands_outlast_a_server_that_is_killed(
    gone_for: float,
    large_pair: Pair,
    wanted_large: Wanted,
    published: Place,
    rebuilt_undisturbed: dict[str, str],
    start: Callable[..., tuple[Command, S3Proxy]],
    s3_to_break: S3Server,
    tmp_path: Path,
    count: Tally,
) -> None:
    run = ["compress", *map(str, large_pair), "--cr", "4"]
    new, out = replace(published, url=unique()), tmp_path / "out"
    writing, written = start(new, *run, "--workers", "1")
    wait_until(partial(has_seen, written, "PUT", 3, 200), writing)
    writing.send(signal.SIGSTOP)  # it would be done before the others have begun
    assert written.count("PUT", 200) < WRITES
    reading, read = start(published, *run, "--verify-cache")
    wait_until(partial(has_seen, read, "GET", 3), reading)
    rebuilding, fetched = start(published, "reconstruct", "whole", "--base", str(large_pair[0]), "--out", str(out))
    wait_until(partial(has_seen, fetched, "GET", 4), rebuilding)  # a quick reader may be done by now
    s3_to_break.kill()
    writing.send(signal.SIGCONT)
    time.sleep(gone_for)
    s3_to_break.start()
    count("S3 server killed in mid-write, mid-read and mid-rebuild", 3)
    made, found, rebuilt = (command.result() for command in (writing, reading, rebuilding))
    assert made["blocks"] == 9
    assert made["remade"] == found["remade"] == []
    assert found["cached_blocks"] == 9
    assert_whole(new, wanted_large)
    assert_whole(published, wanted_large)
    assert {path.name: sha256_of(path) for path in out.iterdir()} == rebuilt_undisturbed
    for report in (made, found, rebuilt):
        assert all("cannot be reached" in again["why"] for again in report["retried"])
    assert made["retried"] or not gone_for  # the others may have read all by then, and be about to end
    verified = run_warm("verify", "whole", "--store", published.url, environment=published.environment)
    assert verified.returncode == 0
