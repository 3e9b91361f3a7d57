"""All that a team runs for a zoo on a schedule: servers, a store, a worker; each may be killed and started again."""

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from subprocess import Popen

from tests.s3proxy import S3Proxy
from tests.servers import PostgresServer, PrefectServer, S3Server, postgres_server, running_s3
from tests.workers import worker

POOL = "night"
PARTS = ("flow", "worker", "machine", "server", "database", "store")  # a machine: a worker with all of its runs


class Installation:
    """Servers, a store behind a proxy that counts requests, and a worker under a supervisor.

    Attributes:
        environment: variables of commands that use it.
        store: the S3 server.
        database: PostgreSQL.
        server: the Prefect server.
        proxy: stands before the S3 server.
        log: of the workers.
    """

    def __init__(self, scratch: Path, store: S3Server, database: PostgresServer, stack: ExitStack) -> None:
        """Start the rest; `stack` ends it.

        Args:
            scratch: a folder of its own, by which its processes are known.
            store: a server that runs.
            database: a server that runs.
            stack: what it is ended with.
        """
        self.store, self.database, self._stack = store, database, stack
        self.proxy = stack.enter_context(S3Proxy(store.variables["AWS_ENDPOINT_URL"]))
        self.server = PrefectServer(scratch / "prefect", database.variables)
        stack.callback(self.server.stop)
        self.server.start()
        self.log = scratch / "worker.log"
        self._mark = f"IMPART_CACHE={scratch / 'cache'}"
        self.environment: Mapping[str, str] = {
            **store.variables,
            **self.server.variables,
            "AWS_ENDPOINT_URL": self.proxy.url,
            "IMPART_CACHE": str(scratch / "cache"),
        }
        stack.callback(self.kill_runs)
        self._workers_environment = self.environment
        self._worker: Popen[bytes] | None = None

    def start_worker(self, variables: Mapping[str, str] | None = None) -> None:
        """Start a worker, as a service manager does.

        Args:
            variables: those of all workers from now on, besides the environment.
        """
        if variables is not None:
            self._workers_environment = {**self.environment, **variables}
        self._worker = self._stack.enter_context(worker(POOL, self._workers_environment, self.log))

    def runs(self) -> dict[str, int]:
        """Return the process of each flow run that a worker started and that lives, by the run's id."""
        found: dict[str, int] = {}
        for folder in sorted(Path("/proc").glob("[0-9]*"), key=lambda one: int(one.name)):
            with suppress(OSError):  # it has ended meanwhile
                variables = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
                if self._mark in variables:
                    ids = [one.partition("=")[2] for one in variables if one.startswith("PREFECT__FLOW_RUN_ID=")]
                    for run in ids:
                        found.setdefault(run, int(folder.name))  # what it starts itself comes later
        return found

    def kill_runs(self) -> dict[str, int]:
        """Kill all runs; return them."""
        killed = self.runs()
        for pid in killed.values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return killed

    def kill(self, part: str) -> set[str]:
        """Kill a part by SIGKILL and start it again, runs apart; return the ids of the runs that died of it."""
        dead: set[str] = set()
        if part in ("worker", "machine"):
            assert self._worker is not None
            assert self._worker.poll() is None, self.log.read_text()[-5000:]
            self._worker.kill()
            self._worker.wait()
        if part in ("flow", "machine"):
            dead = set(self.kill_runs())
        if part in ("worker", "machine"):
            self.start_worker()
        if part in ("server", "database", "store"):
            hit: PrefectServer | PostgresServer | S3Server = getattr(self, part)
            hit.kill()
            hit.start()
        return dead

    def revive(self) -> None:
        """Start the worker again where it ended by itself, as one does whose server is away for too long."""
        if self._worker is not None and self._worker.poll() is not None:
            self.start_worker()


@contextmanager
def installation(scratch: Path) -> Iterator[Installation]:
    """Run an installation as long as the block lasts; what is left of its runs is killed at the end."""
    with ExitStack() as stack:
        store = stack.enter_context(running_s3(S3Server(scratch / "s3")))
        database = stack.enter_context(postgres_server())
        yield Installation(scratch, store, database, stack)
