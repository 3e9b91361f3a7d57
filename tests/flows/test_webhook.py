import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from impart_core.zoo.file import Notify
from impart_core.zoo.record import Outcome, ZooRun
from impart_flows.webhook import notify


class Receiver(HTTPServer):
    """A chat's webhook: keeps what is posted, and answers with the codes that it was given, the last one for ever."""

    def __init__(self) -> None:
        """Listen on a free port."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.posted: list[dict[str, Any]] = []
        self.answers = [200]

    @property
    def url(self) -> str:
        """Its address, with a secret in it."""
        return f"http://127.0.0.1:{self.server_port}/hooks/SECRET"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        self.server.posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.answers[0] if len(self.server.answers) == 1 else self.server.answers.pop(0))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A webhook whose address stands in HOOK."""
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HOOK", server.url)
        yield server
        server.shutdown()


def run_with(*statuses: Any) -> ZooRun:
    """Return a run with outcomes of these statuses."""
    outcomes = tuple(
        Outcome(name=f"m{number}", kind="model", status=status, ref=f"m{number}@prod", why="It is so.")
        for number, status in enumerate(statuses)
    )
    return ZooRun(zoo="team", run="r", started="", seconds=1, store="s3://b", outcomes=outcomes)


def test_trouble_is_told_with_the_entries_to_look_at(receiver: Receiver) -> None:
    assert not notify(Notify(webhook_env="HOOK"), run_with("promoted", "failed"))
    (message,) = receiver.posted
    assert message["text"] == "team: 1 failed, 1 promoted, in 1.0 s."
    assert [(one["name"], one["why"]) for one in message["entries"]] == [("m1", "It is so.")]


def test_a_run_without_trouble_is_told_where_that_is_asked_for(receiver: Receiver) -> None:
    assert not notify(Notify(webhook_env="HOOK"), run_with("promoted"))
    assert not notify(Notify(webhook_env="HOOK", when="always"), run_with("promoted"))
    assert len(receiver.posted) == 1


def test_a_server_that_is_busy_is_asked_again_and_a_refusal_is_not(receiver: Receiver) -> None:
    receiver.answers = [503, 429, 200]
    assert not notify(Notify(webhook_env="HOOK"), run_with("failed"))
    receiver.answers = [403]
    assert "it answered 403" in notify(Notify(webhook_env="HOOK"), run_with("failed"))
    assert len(receiver.posted) == 4


@pytest.mark.parametrize("address", ["", "http://127.0.0.1:1/hooks/SECRET", "no address SECRET"])
def test_what_cannot_be_told_is_a_sentence_without_the_secret(
    address: str, monkeypatch: pytest.MonkeyPatch, receiver: Receiver
) -> None:
    monkeypatch.setenv("HOOK", address)
    told = notify(Notify(webhook_env="HOOK"), run_with("failed"))
    assert told.startswith("Nobody was told of this run")
    assert "SECRET" not in told
    assert not receiver.posted
