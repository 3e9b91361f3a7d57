"""The embedded Prefect server: started for one command when no server is configured, gone when it ends.

Prefect's own temporary server outlives a client that is killed. This one is tied to its parent's life, and
Ctrl-C reaches it only after the flow has ended.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from impart_core.base.errors import ImpartError
from impart_core.engine.executor import Progress

_STARTUP_SECONDS = 120
_PATIENCE_SECONDS = 60  # for a configured server that is there but too busy to answer

# Linux ends the server with its parent, however the parent dies; elsewhere only an orderly end stops it.
_LAUNCHER = """
import ctypes, os, signal, socket, sys
parent, bound = map(int, sys.argv[1:])
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(0)
import uvicorn
app = uvicorn.Config(
    "prefect.server.api.server:create_app",
    factory=True, lifespan="on", log_level="error", timeout_graceful_shutdown=3,
)
uvicorn.Server(app).run(sockets=[socket.socket(fileno=bound)])
"""


class ServerError(ImpartError):
    """The Prefect server does not answer."""


def silent_server(error: Exception) -> ServerError:
    """Return what is told of a configured server that did not answer a request."""
    from prefect.settings import PREFECT_API_URL

    return ServerError(
        f"The Prefect server at {PREFECT_API_URL.value()} does not answer: {error!s:.200}. Check PREFECT_API_URL."
    )


@contextmanager
def prefect_server(progress: Progress | None = None) -> Iterator[str]:
    """Give the URL of the configured Prefect API, or of an embedded server that runs as long as the block.

    Raises:
        ServerError: the configured server does not answer, or the embedded one does not start, or no client of one
            can be made here.
    """
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    _require_client()
    configured = PREFECT_API_URL.value()
    if configured:
        if not _healthy(configured, _PATIENCE_SECONDS):
            raise ServerError(
                f"The Prefect server at {configured} does not answer. Start it, or unset PREFECT_API_URL to use "
                "an embedded one."
            )
        from impart_flows.watchdog import heartbeats

        with heartbeats():
            yield configured
        return
    # Nobody is left to miss a heartbeat when the command dies; see `heartbeats`.
    with (
        _embedded(progress or (lambda *_: None)) as url,
        temporary_settings({PREFECT_API_URL: url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        yield url


@contextmanager
def _embedded(report: Progress) -> Iterator[str]:
    _require_home()
    # The port is bound here and listened on there: nobody else can have taken it when the server gets so far.
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/api"
        command = [sys.executable, "-c", _LAUNCHER, str(os.getpid()), str(bound.fileno())]
        server = subprocess.Popen(command, env=_environment(), start_new_session=True, pass_fds=[bound.fileno()])
    try:
        report("start server", 0, 1, "")
        deadline = time.monotonic() + _STARTUP_SECONDS
        while not _healthy(url):
            if server.poll() is not None or time.monotonic() > deadline:
                raise ServerError(
                    f"The embedded Prefect server did not start (exit code {server.poll()}). "
                    "See the lines above, or start one with `prefect server start` and set PREFECT_API_URL."
                )
            time.sleep(0.1)
        report("start server", 1, 1, "embedded; set PREFECT_API_URL to use a running one")
        yield url
    finally:
        if server.poll() is None:
            _send_queued()
        server.terminate()
        try:
            server.wait(timeout=5)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _require_client() -> None:
    """Make a client as Prefect makes its own, by what the environment says of proxies and certificates."""
    import httpx

    try:
        httpx.Client().close()
    except Exception as error:  # a package for SOCKS, a scheme, a file of certificates: each with an error of its own
        raise ServerError(
            f"A Prefect server cannot be talked to as this environment says: {str(error).rstrip('.')}. Check "
            "ALL_PROXY, HTTP_PROXY, HTTPS_PROXY and SSL_CERT_FILE, or unset them for this command. A SOCKS proxy needs "
            "`pip install socksio`."
        ) from error


def _require_home() -> None:
    """Make the folder that the server keeps its database in."""
    from prefect.settings import PREFECT_HOME

    home = PREFECT_HOME.value()
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        raise ServerError(
            f"Prefect cannot keep its files in {home}: {error.strerror}. Set PREFECT_HOME to a folder that can be "
            "written, or unset it."
        ) from error


def _send_queued() -> None:
    """Send the logs and events that Prefect has queued while the server is still there to take them."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (EventsWorker, APILogWorker):
        worker.drain_all(timeout=5)


def _environment() -> dict[str, str]:
    """Return the environment in which Prefect starts its own temporary server: no page, no telemetry."""
    from prefect.settings import get_current_settings

    return {
        **os.environ,
        **get_current_settings().to_environment_variables(exclude_unset=True),
        "PREFECT_UI_ENABLED": "0",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT__SERVER_EPHEMERAL": "1",
        "PREFECT__SERVER_FINAL": "1",
    }


def _healthy(url: str, patience: float = 0.0) -> bool:
    """Return whether a server answers; one that takes a connection but stays silent is asked again for a while."""
    import httpx

    deadline = time.monotonic() + patience
    while True:
        try:
            return httpx.get(f"{url}/health", timeout=5).status_code == httpx.codes.OK
        except httpx.TimeoutException:
            if time.monotonic() >= deadline:
                return False
        except httpx.HTTPError:
            return False
