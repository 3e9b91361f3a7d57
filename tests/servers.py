"""Servers on this machine that stand where S3 and the Hugging Face Hub would."""

import json
import os
import socket
import subprocess
import sys
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

SCRIPT = Path(__file__).parent.parent / "infra" / "s3-server"
UPLOADER = "hf_uploader"  # the token that may write
MAIN, OLD = "1" * 40, "2" * 40  # the commits of the served models' branch `main` and tag `v1`


@contextmanager
def s3_server(home: Path) -> Iterator[dict[str, str]]:
    """Run a real S3 server; give the variables that point a client to it. It holds one bucket, `impart`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "S3_DEV_HOME": str(home), "S3_PORT": str(_free_ports(8))}

    def run(verb: str) -> str:
        done = subprocess.run([SCRIPT, verb], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    try:
        printed = run("start")
        exports = [line.removeprefix("export ") for line in printed.splitlines() if line.startswith("export ")]
        yield dict(pair.split("=", 1) for line in exports for pair in line.split())
    finally:
        run("stop")


def _free_ports(count: int) -> int:
    """Return the first of this many free ports in a row."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first = int(probe.getsockname()[1])
        taken = False
        for port in range(first, first + count):
            with socket.socket() as probe:
                try:
                    probe.bind(("127.0.0.1", port))
                except (OSError, OverflowError):
                    taken = True
        if not taken:
            return first


class CountingProxy:
    """Passes connections on to a server and counts the bytes that come back."""

    def __init__(self, url: str) -> None:
        """Listen on a port of its own for as long as the process runs."""
        target = urlsplit(url)
        self._target = (str(target.hostname), int(target.port or 80))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.received = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            server = socket.create_connection(self._target)
            threading.Thread(target=self._pass, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, True), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        with suppress(OSError), closing(target):
            while data := source.recv(1 << 16):
                self.received += len(data) if counted else 0
                target.sendall(data)


class Hub(ThreadingHTTPServer):
    """The few endpoints of the Hugging Face Hub that reading or uploading a model takes, over folders of this machine.

    Weights are elsewhere, as there: requests for them are sent on to another path.

    Attributes:
        models: the folders by id (`org/name`); an id that ends in `-gated` may be listed but not read.
        requests: the path and the Range header of every request.
        broken: the status that every request is answered with, if any.
        created: whether each repository is private that was created here or there before.
        uploaded: the files of each repository that were committed to it, by path.
    """

    daemon_threads = True

    def __init__(self, models: dict[str, Path]) -> None:
        """Listen on a port of its own."""
        super().__init__(("127.0.0.1", 0), _Answer)
        self.models = models
        self.requests: list[tuple[str, str | None]] = []
        self.broken: int | None = None
        self.created: dict[str, bool] = {}
        self.uploaded: dict[str, dict[str, bytes]] = {}
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def hub_server(models: dict[str, Path]) -> Iterator[Hub]:
    """Run a Hub over these models as long as the block lasts."""
    with Hub(models) as hub:
        threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield hub
        finally:
            hub.shutdown()


class _Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.requests.append((self.path, asked))
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if self.server.broken:
            self._refuse(self.server.broken, "")
        elif parts[:2] == ["api", "models"]:
            self._describe("/".join(parts[2:4]), parts[4:])
        elif parts[0] == "elsewhere":
            self._send_range("/".join(parts[1:3]), parts[3], asked)
        else:
            self._resolve("/".join(parts[:2]), *parts[3:5], asked)

    def do_POST(self) -> None:
        self.server.requests.append((self.path, None))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path).path.strip("/").split("/")
        repo = "/".join(parts[2:4])
        if self.server.broken:
            self._refuse(self.server.broken, "")
        elif parts[1:] == ["validate-yaml"]:
            self._send_json({"errors": [], "warnings": []})
        elif self.headers.get("Authorization") != f"Bearer {UPLOADER}":
            self._refuse(401, "")
        elif parts[1:] == ["repos", "create"]:
            self._create(json.loads(body))
        elif parts[4] == "preupload":
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            self._send_json({"files": [{**file, "shouldIgnore": False} for file in files]})
        else:
            lines = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            held = self.server.uploaded.setdefault(repo, {})
            held.update((file["path"], b64decode(file["content"])) for file in files)
            self._send_json({"commitUrl": f"{self.server.url}/{repo}/commit/{MAIN}", "commitOid": MAIN})

    def _create(self, asked: dict[str, str]) -> None:
        repo = f"{asked['organization']}/{asked['name']}"
        there = repo in self.server.created
        self.server.created.setdefault(repo, asked.get("visibility") == "private")
        self._send_json({"url": f"{self.server.url}/{repo}"}, 409 if there else 200)

    def _describe(self, repo: str, rest: list[str]) -> None:
        if repo in self.server.created:
            self._send_json({"id": repo, "sha": MAIN, "private": self.server.created[repo]})
            return
        if repo not in self.server.models:
            self._refuse(401, "RepoNotFound")
            return
        commit = {"main": MAIN, MAIN: MAIN, "v1": OLD, OLD: OLD}.get(rest[1] if rest else "main")
        if commit is None:
            self._refuse(404, "RevisionNotFound")
        elif rest[:1] == ["tree"]:
            files = sorted(self.server.models[repo].iterdir())
            self._send(json.dumps([_listed(file) for file in files]).encode())
        else:
            self._send(json.dumps({"id": repo, "sha": commit}).encode())

    def _resolve(self, repo: str, commit: str, name: str, asked: str | None) -> None:
        if repo.endswith("-gated"):
            self._refuse(403, "GatedRepo")
        elif commit not in (MAIN, OLD) or asked is None:
            self._refuse(400, "")  # a reader that does not name the commit, or wants a whole file
        elif name.endswith(".safetensors"):
            self.send_response(302)
            self.send_header("Location", f"{self.server.url}/elsewhere/{repo}/{name}")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._send_range(repo, name, asked)

    def _send_range(self, repo: str, name: str, asked: str | None) -> None:
        first, last = map(int, str(asked).removeprefix("bytes=").split("-"))
        self._send((self.server.models[repo] / name).read_bytes()[first : last + 1], 206)

    def _send(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send_json(self, value: object, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), status)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def _listed(file: Path) -> dict[str, object]:
    kind = "directory" if file.is_dir() else "file"
    return {"type": kind, "path": file.name, "size": file.stat().st_size, "oid": f"{hash(file.name):040x}"}
