"""Clusters of two nodes on this machine, as real as any: processes that can be stopped and killed."""

import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.servers import free_ports

ROOT = Path(__file__).parent.parent
SECONDS = 120
PACKAGES = {"ray": "prefect_ray", "dask": "prefect_dask"}


class Nodes(ABC):
    """A cluster of nodes with one slot each.

    Attributes:
        address: where the cluster is reached from one of its machines.
        client: where it is reached from any machine.
    """

    address: str
    client: str

    def halt(self, number: int) -> None:
        """Have a node and all its processes stand still."""
        self._send(number, signal.SIGSTOP)

    def go_on(self, number: int) -> None:
        """Have a node that was halted go on."""
        self._send(number, signal.SIGCONT)

    def kill(self, number: int) -> None:
        """End a node and all its processes at once."""
        self._send(number, signal.SIGKILL)

    def has(self, number: int, lineage: Sequence[int]) -> bool:
        """Return whether a process is one of a node's, given what `lineage` returned in it."""
        return self.root(number) in lineage

    @abstractmethod
    def root(self, number: int) -> int:
        """Return the id of the process that all others of a node come from."""

    def _processes(self, number: int) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            first = psutil.Process(self.root(number))
            return [first, *first.children(recursive=True)]
        return []

    def _send(self, number: int, signum: signal.Signals) -> None:
        for process in self._processes(number):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signum)


def lineage() -> list[int]:
    """Return the ids of this process and of all that it comes from: a node may end it before it can be looked for."""
    return [os.getpid(), *(process.pid for process in psutil.Process().parents())]


class DaskNodes(Nodes):
    """A scheduler, and workers without a nanny."""

    def __init__(self, folder: Path, environment: Mapping[str, str], gpus: Sequence[int]) -> None:
        """Start them."""
        self._file, self._log, self._environment = folder / "scheduler.json", folder / "log", environment
        self._started: list[subprocess.Popen[bytes]] = []
        self._start("scheduler", "--port", "0", "--scheduler-file", str(self._file), "--no-dashboard")
        wait_for(self._file.exists, self._log)
        own = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", str(folder))
        for gpu in gpus:
            offers = ("--resources", f"GPU={gpu} MEMORY=1e9") if gpu else ()
            self._start("worker", "--scheduler-file", str(self._file), *own, *offers)

    def open(self) -> None:
        """Wait until all workers are there."""
        import distributed

        wait_for(lambda: self._file.read_text().endswith("}"), self._log)
        with distributed.Client(scheduler_file=str(self._file), timeout=SECONDS) as client:
            client.wait_for_workers(len(self._started) - 1, timeout=SECONDS)
            self.address = self.client = client.scheduler.address

    def root(self, number: int) -> int:
        """Return the id of a worker."""
        return self._started[1 + number].pid

    def close(self) -> None:
        """End all that is left."""
        for process in self._started:
            process.kill()
            process.wait()

    def _start(self, *arguments: str) -> None:
        with self._log.open("ab") as said:
            command = [sys.executable, "-m", "dask", *arguments]
            env = {**os.environ, **self._environment}
            self._started.append(subprocess.Popen(command, env=env, stdout=said, stderr=said, start_new_session=True))


class RayNodes(Nodes):
    """A head that takes no work, and nodes that do."""

    def __init__(self, folder: Path, environment: Mapping[str, str], gpus: Sequence[int]) -> None:
        """Start them."""
        self._before = {name: os.environ.get(name) for name in environment}
        os.environ.update(environment)
        from ray.cluster_utils import Cluster

        own: dict[str, Any] = {"object_store_memory": 100 << 20, "include_dashboard": False}
        port = free_ports(1)
        head = {"num_cpus": 0, "num_gpus": 0, "ray_client_server_port": port, **own}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._nodes = [self._cluster.add_node(num_cpus=1, num_gpus=gpu, **own) for gpu in gpus]
        self.address, self.client = self._cluster.address, f"ray://127.0.0.1:{port}"

    def open(self) -> None:
        """Wait until all nodes are there, and clients are served: a head that has just begun refuses them."""
        self._cluster.wait_for_nodes(SECONDS)
        connect = [sys.executable, "-c", f"import ray; ray.init({self.client!r}, log_to_driver=False)"]
        deadline = time.monotonic() + SECONDS
        while subprocess.run(connect, capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, f"Ray serves no clients at {self.client}"

    def root(self, number: int) -> int:
        """Return the id of a node's raylet."""
        [raylet] = self._nodes[number].all_processes["raylet"]
        return int(raylet.process.pid)

    def close(self) -> None:
        """End all that is left."""
        self._cluster.shutdown()
        for name, value in self._before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def some_nodes(
    runner: str, folder: Path, environment: Mapping[str, str | None], gpus: Sequence[int] = (0, 0)
) -> Iterator[Nodes]:
    """Give a cluster; skips the test where its packages are not installed.

    Args:
        runner: which kind.
        folder: for its files.
        environment: variables of its processes.
        gpus: how many GPUs each node says that it has.
    """
    if find_spec(PACKAGES[runner]) is None:
        pytest.skip(f"{PACKAGES[runner]} is not installed: pip install 'impart-zoo[{runner}]'")
    given = {name: value for name, value in environment.items() if value is not None}
    variables = {**given, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    folder.mkdir(parents=True, exist_ok=True)
    nodes = (RayNodes if runner == "ray" else DaskNodes)(folder, variables, gpus)
    try:
        nodes.open()
        yield nodes
    finally:
        nodes.close()


def wait_for(condition: Any, log: Path | None = None) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, log.read_text() if log else "it did not come about"
        time.sleep(0.05)
