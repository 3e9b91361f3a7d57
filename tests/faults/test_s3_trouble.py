"""A network that cuts, stalls and refuses, a server that fails and throttles, rights taken away: runs on S3."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.conftest import Wanted
from tests.faults.places import Place, assert_whole, manifests_in
from tests.faults.tally import Tally
from tests.faults.warm import run_warm, wait_until, warm, warm_json
from tests.s3proxy import Fault, Request, S3Proxy
from tests.servers import S3Server
from tests.support import halt_when

pytestmark = pytest.mark.faults

Pair = tuple[Path, Path]
LONGEST_SECONDS = 60
# A stalled upload lasts four read time-outs. Only where requests stall: a busy machine's server is as slow at times.
IMPATIENT = {"IMPART_STORE_OPTIONS": '{"config_kwargs": {"connect_timeout": 1, "read_timeout": 1}}'}


class Underway:
    """Matches requests once the run has begun; what goes wrong before is told at once, and tried by hand."""

    def __init__(self, *methods: str) -> None:
        """Match requests with these methods alone, where any are given."""
        self._begun, self._methods = threading.Event(), methods

    def __call__(self, request: Request) -> bool:
        """Return whether a request is to be matched; the run begins with its pin."""
        if "/pins/" in request.path and request.method == "PUT":
            self._begun.set()
            return False
        return self._begun.is_set() and (not self._methods or request.method in self._methods)


TROUBLES: dict[str, Callable[[S3Proxy], Fault]] = {
    "requests cut": lambda proxy: proxy.cut_requests(times=8, match=Underway()),
    "requests reset": lambda proxy: proxy.cut_requests(times=8, reset=True, match=Underway()),
    "answers cut": lambda proxy: proxy.cut_answers(times=8, match=Underway()),
    "answers reset": lambda proxy: proxy.cut_answers(times=8, reset=True, match=Underway()),
    "answers to uploads lost": lambda proxy: proxy.cut_answers(times=8, match=Underway("PUT")),
    "reads stalled": lambda proxy: proxy.stall(times=2, match=Underway("GET")),
    "an upload stalled": lambda proxy: proxy.stall(times=1, match=Underway("PUT")),
    "a fifth answered 500": lambda proxy: proxy.answer(500, times=None, fraction=0.2, seed=5, match=Underway()),
    "a third answered 503": lambda proxy: proxy.answer(503, times=None, fraction=0.33, seed=6, match=Underway()),
}


@pytest.mark.parametrize("what", TROUBLES)
def test_a_run_survives_a_bad_network(
    what: str, pair: Pair, wanted: Wanted, behind_proxy: Place, proxy: S3Proxy, count: Tally
) -> None:
    fault = TROUBLES[what](proxy)
    run = ["compress", *map(str, pair), "--cr", "4", "--name", "bad", "--store", behind_proxy.url]
    began = time.monotonic()
    environment = {**behind_proxy.environment, **(IMPATIENT if "stalled" in what else {})}
    report = warm_json(*run, environment=environment, timeout=LONGEST_SECONDS)
    proxy.heal()
    assert fault.injected, "nothing went wrong"
    count(what, fault.injected)
    assert time.monotonic() - began < LONGEST_SECONDS
    assert report["blocks"] == 3
    if what == "an upload stalled":  # what s3fs does not try again by itself
        assert report["retried"]
    assert all("cannot be reached" in again["why"] for again in report["retried"])
    assert_whole(behind_proxy, wanted)
    verified = run_warm("verify", "bad", "--store", behind_proxy.url, environment=behind_proxy.environment)
    assert verified.returncode == 0


def test_a_run_survives_that_connections_are_refused_for_some_seconds(
    pair: Pair, wanted: Wanted, behind_proxy: Place, proxy: S3Proxy, count: Tally
) -> None:
    run = ["compress", *map(str, pair), "--cr", "4", "--store", behind_proxy.url, "--json"]
    with warm(*run, environment=behind_proxy.environment) as command, ExitStack() as stack:
        wait_for_pin(proxy)
        stack.enter_context(proxy.refusing())
        wait_for_refusal(proxy)
        time.sleep(15)  # s3fs tries each request for two or three, and a listing takes several
        stack.close()
        report = command.result()
    assert proxy.refused
    count("connections refused", proxy.refused)
    assert report["retried"]
    assert_whole(behind_proxy, wanted)


def wait_for_pin(proxy: S3Proxy) -> None:
    """Wait until a run behind the proxy has pinned what it may reuse."""
    wait_until(lambda: any(seen.method == "PUT" and "/pins/" in seen.path for seen in list(proxy.requests)))


def wait_for_refusal(proxy: S3Proxy) -> None:
    """Wait until a proxy that refuses connections was asked for one: a run may do something else first."""
    before = proxy.refused
    wait_until(lambda: proxy.refused != before)


@pytest.fixture
def revoked(s3_to_break: S3Server) -> Iterator[Callable[[], None]]:
    """Takes the writer's rights away until the test ends."""
    yield s3_to_break.revoke
    s3_to_break.restore()


def test_rights_taken_away_end_a_run_with_a_sentence_and_it_goes_on_when_they_are_back(
    large_pair: Pair,
    wanted_large: Wanted,
    behind_proxy: Place,
    proxy: S3Proxy,
    revoked: Callable[[], None],
    s3_to_break: S3Server,
    count: Tally,
) -> None:
    run = ["compress", *map(str, large_pair), "--cr", "4", "--store", behind_proxy.url, "--json", "--workers", "1"]
    with warm(*run, environment=behind_proxy.environment) as command:
        # A pin, and two objects for each artifact.
        halt_when(lambda: proxy.count("PUT", 200) >= 12, command.send, lambda: command.running)
        revoked()
        command.send(signal.SIGCONT)
        done = command.wait(30)
    count("rights taken away in mid-run")
    assert done.returncode == 2, done.stderr
    assert f"error: The store {behind_proxy.url} refuses this" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert str(behind_proxy.server["AWS_SECRET_ACCESS_KEY"]) not in done.stdout + done.stderr
    s3_to_break.restore()
    blocks = len(manifests_in(behind_proxy.objects(), "block"))
    assert 1 <= blocks < 9
    with warm(*run, environment=behind_proxy.environment) as again:
        assert again.result()["cached_blocks"] == blocks
    assert_whole(behind_proxy, wanted_large)
