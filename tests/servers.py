"""Servers on this machine: S3, PostgreSQL and Prefect, real ones, and what stands where the Hugging Face Hub would."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from base64 import b64decode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

INFRA = Path(__file__).parent.parent / "infra"
SCRIPT = INFRA / "s3-server"
_RELOAD_SECONDS = 0.3  # it reads its identities again within a few milliseconds of being told
_SERVER_PORTS = (10_000, 32_000)
UPLOADER = "hf_uploader"  # the token that may write
MAIN, OLD = "1" * 40, "2" * 40  # the commits of the served models' branch `main` and tag `v1`


class S3Server:
    """A real S3 server of its own, that may be killed, restarted, filled, and told to trust its writer no more.

    Attributes:
        variables: what points a client to it; it holds one bucket, `impart`.
        reader: the same for an identity that may read and list, but not write.
    """

    def __init__(self, home: Path, data: Path | None = None, min_free: str = "1") -> None:
        """Choose ports; nothing is started yet.

        Args:
            home: the folder of its identities and its log.
            data: the folder of its data, by default in its home.
            min_free: it takes no writes with less free space than this, percent or a size such as 4MiB.
        """
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        places = {"S3_DEV_HOME": str(home), "S3_DATA": str(data or home / "data"), "S3_MIN_FREE": min_free}
        self._environment = {**os.environ, **places, "PATH": path, "S3_PORT": str(free_ports(8))}
        self._identities = home / "identities.json"
        self.variables: dict[str, str] = {}
        self.reader: dict[str, str] = {}

    def start(self) -> None:
        """Start it on the data and ports that it had, and wait until it stores and returns."""
        self.variables = _exports(self._run("start"))
        self.reader = _exports(self._run("reader"))

    def stop(self) -> None:
        """Stop it, as an administrator would."""
        self._run("stop")

    def kill(self) -> None:
        """End it without a chance to tidy up."""
        self._run("kill")

    def revoke(self) -> None:
        """Take from the writer the right to do anything. Its keys stay known: a removed identity would be kept."""
        self._allow([])

    def restore(self) -> None:
        """Give the writer back what it may do."""
        self._allow(["Admin", "Read", "Write", "List", "Tagging"])

    def allow(self, name: str, keys: Mapping[str, str], actions: list[str]) -> None:
        """Add an identity with its keys and what it may do, such as `Write:impart/prefix/*`."""
        found = json.loads(self._identities.read_text())
        found["identities"].append({"name": name, "credentials": [dict(keys)], "actions": actions})
        self._identities.write_text(json.dumps(found))
        self._run("reload")
        time.sleep(_RELOAD_SECONDS)

    def _allow(self, actions: list[str]) -> None:
        found = json.loads(self._identities.read_text())
        found["identities"][0]["actions"] = actions
        self._identities.write_text(json.dumps(found))
        self._run("reload")
        time.sleep(_RELOAD_SECONDS)

    def _run(self, verb: str) -> str:
        done = subprocess.run([SCRIPT, verb], env=self._environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def s3_server(home: Path) -> Iterator[dict[str, str]]:
    """Run a real S3 server; give the variables that point a client to it. It holds one bucket, `impart`."""
    with running_s3(S3Server(home)) as server:
        yield server.variables


@contextmanager
def running_s3(server: S3Server) -> Iterator[S3Server]:
    """Run this S3 server as long as the block lasts."""
    try:
        server.start()
        yield server
    finally:
        server.stop()


class PostgresServer:
    """A real PostgreSQL server of its own, that may be killed and started again; see `has_postgres`.

    Attributes:
        variables: what has a Prefect server keep its records in it.
    """

    def __init__(self, home: Path) -> None:
        """Choose a port; nothing is started yet.

        Args:
            home: its folder. Where tests run as root, another user's server has to reach it.
        """
        places = {"POSTGRES_DEV_HOME": str(home), "POSTGRES_PORT": str(free_ports(1))}
        self._environment = {**os.environ, **places}
        self.variables: dict[str, str] = {}

    def start(self) -> None:
        """Start it on the data and the port that it had, and wait until it answers."""
        self.variables = _exports(self._run("start"))

    def stop(self) -> None:
        """Stop it, as an administrator would."""
        self._run("stop")

    def kill(self) -> None:
        """End it without a chance to tidy up."""
        self._run("kill")

    def _run(self, verb: str) -> str:
        return run_script(INFRA / "postgres-server", verb, self._environment)


def has_postgres() -> bool:
    """Return whether PostgreSQL is installed here."""
    return bool(shutil.which("pg_ctl") or list(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")))


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Run a real PostgreSQL server in a folder of its own that any user may reach."""
    with tempfile.TemporaryDirectory(prefix="impart-postgres-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        server = PostgresServer(Path(folder) / "home")
        try:
            server.start()
            yield server
        finally:
            server.stop()


class PrefectServer:
    """A Prefect server of its own with its scheduler, as a team runs one, that may be killed and started again.

    Attributes:
        home: its folder.
        variables: what points a client to it.
    """

    def __init__(self, home: Path, database: Mapping[str, str]) -> None:
        """Choose a port; nothing is started yet.

        Args:
            home: its folder.
            database: variables that say where it keeps its records.
        """
        port = free_ports(1)
        self.home = home
        self.variables = {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api", "PREFECT_HOME": str(home)}
        self._environment = {**os.environ, "PREFECT_DEV_HOME": str(home), "PREFECT_PORT": str(port), **database}

    def start(self) -> None:
        """Start it on the records and the port that it had, and wait until it answers."""
        self._run("start")

    def stop(self) -> None:
        """Stop it, as an administrator would."""
        self._run("stop")

    def kill(self) -> None:
        """End it without a chance to tidy up."""
        self._run("kill")

    def _run(self, verb: str) -> str:
        return run_script(INFRA / "prefect-server", verb, self._environment)


@contextmanager
def persistent_prefect(home: Path, database: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Run a Prefect server; give the variables that point a client to it. See `PrefectServer` for the arguments."""
    server = PrefectServer(home, database)
    try:
        server.start()
        yield server.variables
    finally:
        server.stop()


def run_script(script: Path, verb: str, environment: Mapping[str, str]) -> str:
    """Run a script of `infra`, which must succeed, and return what it prints."""
    # Servers that it leaves behind would keep a pipe open: it prints to a file.
    with tempfile.TemporaryFile("w+") as said:
        done = subprocess.run([script, verb], env=environment, stdout=said, stderr=said, check=False)
        said.seek(0)
        printed = said.read()
    assert done.returncode == 0, printed
    return printed


def _exports(printed: str) -> dict[str, str]:
    lines = [line.removeprefix("export ") for line in printed.splitlines() if line.startswith("export ")]
    return dict(pair.split("=", 1) for line in lines for pair in line.split())


def free_ports(count: int) -> int:
    """Return the first of this many free ports in a row.

    They are drawn below those that the system gives to clients: a server that starts, or starts again, would find
    one of these taken by any connection.
    """
    while True:
        first = random.SystemRandom().randrange(*_SERVER_PORTS, count)
        taken = False
        for port in range(first, first + count):
            with socket.socket() as probe:
                try:
                    probe.bind(("127.0.0.1", port))
                except (OSError, OverflowError):
                    taken = True
        if not taken:
            return first


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
        elif parts == ["api", "models"]:
            (author,) = parse_qs(urlsplit(self.path).query)["author"]
            self._send_json([{"id": name} for name in self.server.models if name.startswith(f"{author}/")])
        elif parts[:2] == ["api", "models"]:
            self._describe("/".join(parts[2:4]), parts[4:])
        elif parts[0] == "elsewhere":
            self._send_range("/".join(parts[1:3]), "/".join(parts[3:]), asked)
        else:
            self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]), asked)

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
            root = self.server.models[repo]
            files = sorted((root / "/".join(rest[2:])).iterdir())
            self._send(json.dumps([_listed(file, root) for file in files]).encode())
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


def _listed(file: Path, root: Path) -> dict[str, object]:
    kind = "directory" if file.is_dir() else "file"
    return {
        "type": kind,
        "path": str(file.relative_to(root)),
        "size": file.stat().st_size,
        "oid": f"{hash(file.name):040x}",
    }
