"""MLflow as a target: whoever answers at its address, and whatever the address holds, an error is a sentence."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from impart_core.base.errors import ConfigError
from impart_core.share.pointer import PointerRecord
from impart_flows.mlflow import TrackingError, TrackingServer

RECORD = PointerRecord(
    artifact="a" * 64, name="math", label="prod", source="impart://x", params={}, metrics={}, tags={"impart.ref": "r"}
)


@contextmanager
def answering(body: bytes, code: int) -> Iterator[str]:
    """A server that gives one answer to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"] or 0))
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET: Callable[..., None] = do_POST

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("code", [200, 302, 404, 500])
@pytest.mark.parametrize(
    "body",
    [
        b"", b"{}", b"[1, 2]", b'"hi"', b"null", b"<html>", bytes(range(256)), b'{"experiment": null}',
        b'{"experiment": {"experiment_id": "1"}, "runs": [{}]}', b'{"experiment": {"experiment_id": "1"}, "runs": 5}',
        b'{"error_code": ["x"], "message": {"a": 1}}',
    ],
)  # fmt: skip
def test_what_does_not_answer_as_mlflow_does_is_an_error(
    body: bytes, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(body, code) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with pytest.raises(TrackingError, match="MLFLOW_TRACKING_URI"):
            TrackingServer().push(RECORD, "impart")


@pytest.mark.parametrize(
    "address", ["me:SECRET@host", "http://me:SECRET/x@host:9", "http://me:SECRET@host:port", "http://me:SECRET@[::1"]
)
def test_an_address_that_is_none_is_refused_and_not_quoted(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI") as caught:
        TrackingServer()
    assert "SECRET" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_token_that_no_header_may_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "SECRETÄ")
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_TOKEN") as caught:
        TrackingServer()
    assert "SECRET" not in str(caught.value)
