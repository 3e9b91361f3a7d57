"""Prefect's task runners for Ray and Dask: which one, connected to what, and how it is asked for what a stage needs."""

import os
import socket
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from prefect import Flow
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect.exceptions import CrashedRun
from prefect.settings import PREFECT_API_URL
from prefect.task_runners import TaskRunner
from prefect.tasks import Task

from impart_core import __version__
from impart_core.base.errors import ClusterError, ConfigError, DeviceError
from impart_core.base.numerics import default_workers
from impart_core.base.spread import CLUSTER_VARIABLE, Spread
from impart_core.engine.executor import Need, Stage
from impart_tasks.remote import carry_out, look, pack, probe

_PACKAGES = {"ray": ("ray", "prefect_ray"), "dask": ("distributed", "prefect_dask")}
_PATIENCE_SECONDS = 120  # for the slowest node to import torch
_CONNECT_SECONDS = 30
_ATTEMPTS = 3
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
Options = Callable[[dict[str, float]], AbstractContextManager[Any]]


def _nothing() -> None:
    """Do nothing: the function of the flow that tasks are told they are part of."""


# A flow that runs is a closure over open checkpoints and a progress bar; nodes only need to know that there is one.
_BARE = Flow(_nothing, name="impart")


@dataclass(frozen=True)
class Cluster:
    """A cluster that is connected.

    Attributes:
        runner: Prefect's task runner.
        slots: how many tasks it runs at once.
        nodes: what each node has of GPUs and memory, by what it is asked for by.
        gpu: what a GPU is asked for by.
        memory: what bytes of memory are asked for by.
        options: asks for resources for what is submitted inside of its block.
        trouble: errors of the cluster's own, which are no stage's.
        device: what `auto` means in the run.
    """

    runner: TaskRunner[Any]
    slots: int
    nodes: tuple[Mapping[str, float], ...]
    gpu: str
    memory: str
    options: Options
    trouble: tuple[type[BaseException], ...]
    device: str = "cpu"

    def resources(self, need: Need) -> dict[str, float]:
        """Return what to ask for: nothing that no node has, or it would be waited for without an end."""
        asked: dict[str, float] = {self.gpu: 1} if need.device and self.device == "cuda" else {}
        able = [node for node in self.nodes if node.get(self.gpu, 0) >= asked.get(self.gpu, 0)]
        memory = int(min(need.memory, max((node.get(self.memory, 0) for node in able), default=0)))
        return {**asked, self.memory: memory} if memory else asked

    @property
    def has_gpu(self) -> bool:
        """Whether any node has a GPU."""
        return any(node.get(self.gpu, 0) >= 1 for node in self.nodes)

    def submit(self, stage: Stage[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Send a stage out, and return Prefect's future of a packed `Done`."""
        label = stage.label_of(*args, **kwargs).replace("{", "{{").replace("}", "}}")
        # It is tried again on its node, where what is tried again is counted, and not by Prefect besides.
        task = Task(carry_out, name=stage.name, task_run_name=label, cache_policy=NO_CACHE, persist_result=False)
        parameters = {"packed": pack((stage, args, kwargs)), "device": self.device}
        with _bare_flow(), self.options(self.resources(stage.need(*args, **kwargs))):
            return self.runner.submit(task, parameters)


def check_runner(spread: Spread, store: str) -> None:
    """Check, before any work and without connecting, that a run can be spread as is asked.

    Raises:
        ConfigError: a package is missing, or the cluster could not reach the store or the Prefect server.
    """
    if spread.runner == "threads":
        return
    address = spread.address  # refuses what is no address
    missing = [name.replace("_", "-") for name in _PACKAGES[spread.runner] if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"The runner {spread.runner!r} needs {' and '.join(missing)}, which this environment lacks. Install it "
            f"with `pip install 'impart-zoo[{spread.runner}]'`, here and on every node."
        )
    if store.startswith("memory:"):
        raise ConfigError(
            f"The store {store} is the memory of one process: no worker of a cluster sees it. Give a folder that all "
            "nodes share, or s3://…."
        )
    if address and address != "auto":
        _require_server([_host(address)])


@contextmanager
def connected(spread: Spread, store: str, device: str, workers: int | None) -> Iterator[Cluster | None]:
    """Give the cluster that a run is spread over, each node of which was looked at; None: threads of this process.

    Args:
        spread: what to spread it over.
        store: the store's URL, a folder as a whole path.
        device: what the run asks for.
        workers: how many workers to start, where a cluster is started for the run.

    Raises:
        ClusterError: it does not answer, or a node does not fit.
        DeviceError: it has no GPU, and one is asked for.
    """
    if spread.runner == "threads":
        yield None
        return
    check_runner(spread, store)
    connect = {"ray": _ray, "dask": _dask}[spread.runner]
    with connect(spread.address, workers or default_workers(), store) as cluster:
        if device == "cuda" and not cluster.has_gpu:
            raise DeviceError(
                "Device 'cuda' was asked for, but no node of the cluster offers a GPU. Use the device cpu, or start "
                "its workers with GPUs (docs/runners.md)."
            )
        chosen = "cuda" if device != "cpu" and cluster.has_gpu else "cpu"
        yield Cluster(**{**vars(cluster), "device": chosen})


@contextmanager
def _ray(address: str | None, workers: int, store: str) -> Iterator[Cluster]:
    import logging

    import ray
    from prefect_ray import RayTaskRunner
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    address, ours = address or os.environ.get("RAY_ADDRESS"), not ray.is_initialized()
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(sys.stderr))  # Ray prints that a node is lost; results go to stdout
        if ours:
            with _reaching(address, (OSError, RuntimeError, ValueError)):
                if address:
                    _connect(lambda: ray.init(address, **quiet), ray.shutdown)
                else:
                    ray.init(num_cpus=workers, include_dashboard=False, **quiet)
            stack.callback(ray.shutdown)
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        _require_nodes([node["NodeManagerAddress"] for node in nodes], address)
        with probe(store) as name, _reaching(address, (ray.exceptions.RayError,)):
            asked = ray.remote(look)
            found = {
                f"{node['NodeManagerHostname']} {node['NodeID'][:6]}": asked.options(
                    num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                ).remote(store, name)
                for node in nodes
            }
            _require_fit(store, {node: ray.get(one, timeout=_PATIENCE_SECONDS) for node, one in found.items()})
        has = _named([node["Resources"] for node in nodes], {"GPU": "num_gpus", "memory": "memory"})
        slots = int(sum(node["Resources"]["CPU"] for node in nodes))
        trouble = (ray.exceptions.RayError, CrashedRun, CancelledError)
        runner = stack.enter_context(RayTaskRunner(address=address))
        yield Cluster(runner, slots, has, "num_gpus", "memory", _ray_options, trouble)


def _connect(connect: Callable[[], object], undo: Callable[[], object]) -> None:
    """Connect to Ray's server of clients, which starts a process for each, and aborts where that fails to start."""
    for left in reversed(range(_ATTEMPTS)):
        try:
            connect()
        except ConnectionAbortedError:
            undo()
            if not left:
                raise
        else:
            return


def _ray_options(asked: Mapping[str, float]) -> AbstractContextManager[Any]:
    from prefect_ray.context import remote_options

    # Ray would end a process after one task with a GPU, so that each imported torch again: three seconds a task.
    options: AbstractContextManager[Any] = remote_options(**asked, **({"max_calls": 0} if "num_gpus" in asked else {}))
    return options


@contextmanager
def _dask(address: str | None, workers: int, store: str) -> Iterator[Cluster]:
    import dask
    from distributed.comm.core import CommClosedError
    from distributed.scheduler import KilledWorker
    from prefect_dask import DaskTaskRunner

    local = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
    where: dict[str, Any] = {"address": address} if address else {"cluster_kwargs": local}
    with DaskTaskRunner(**where, client_kwargs={"timeout": _CONNECT_SECONDS}) as runner:
        with _reaching(address, (OSError,)):
            client = runner.client  # connects
        nodes = client.scheduler_info(n_workers=-1)["workers"]
        _require_nodes([_host(node) for node in nodes], address)
        with probe(store) as name, _reaching(address, (OSError, CommClosedError, ImportError)):
            _require_fit(store, client.run(look, store, name))
        has = _named([node["resources"] for node in nodes.values()], {"GPU": "GPU", "MEMORY": "MEMORY"})
        slots = sum(node["nthreads"] for node in nodes.values())
        trouble = (KilledWorker, CommClosedError, CrashedRun, CancelledError)
        yield Cluster(runner, slots, has, "GPU", "MEMORY", lambda asked: dask.annotate(resources=asked), trouble)


@contextmanager
def _reaching(address: str | None, errors: tuple[type[BaseException], ...]) -> Iterator[None]:
    """Tell errors inside the block as those of a cluster that cannot be used."""
    try:
        yield
    except errors as error:
        place = f"The cluster at {address}" if address else "A cluster on this machine"
        raise ClusterError(
            f"{place} cannot be used: {type(error).__name__}: {' '.join(str(error).split())[:300].rstrip('.')}. Check "
            f"--cluster and {CLUSTER_VARIABLE}, and that its nodes have the same Python and impart as this machine."
        ) from error


def _require_nodes(hosts: Collection[str], address: str | None) -> None:
    if not hosts:
        raise ClusterError(f"The cluster at {address} has no workers: blocks would wait for ever. Start some.")
    _require_server(hosts)


def _require_server(hosts: Iterable[str]) -> None:
    """Refuse nodes elsewhere that would tell a Prefect server on this machine's loopback how they get on."""
    elsewhere = next((host for host in hosts if not _is_here(host)), None)
    if elsewhere and (urlsplit(PREFECT_API_URL.value() or "").hostname or "localhost") in _LOOPBACK:
        raise ConfigError(
            f"The cluster's node {elsewhere} tells a Prefect server how it gets on, and one that is started for the "
            "command is not reached from there. Start one that stays (infra/README.md) and set PREFECT_API_URL."
        )


def _require_fit(store: str, found: Mapping[str, tuple[str, str | None]]) -> None:
    """Refuse a cluster with a node of another version, or one that does not see the store."""
    for node, (version, _) in found.items():
        if version != __version__:
            raise ClusterError(
                f"The node {node} has impart {version} and this machine {__version__}, which may make other bytes. "
                "Install one version everywhere."
            )
    for node, (_, wrong) in found.items():
        if wrong:
            raise ClusterError(
                f"The node {node} does not see the store {store} as this machine does: {wrong}. Blocks are read and "
                "written by the nodes themselves: give a folder that all nodes share, or s3://… with credentials on "
                "each."
            )


def _named(nodes: Iterable[Mapping[str, float]], names: Mapping[str, str]) -> tuple[dict[str, float], ...]:
    """Return what each node has, by what it is asked for by."""
    return tuple({asked: node[name] for name, asked in names.items() if name in node} for node in nodes)


@contextmanager
def _bare_flow() -> Iterator[None]:
    """Have tasks that are submitted inside the block belong to the flow run, and carry nothing of it but its id."""
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    run = context.flow_run.model_copy(update={"parameters": {}})
    with context.model_copy(update={"flow": _BARE, "parameters": {}, "flow_run": run}):
        yield


def _host(address: str) -> str:
    return urlsplit(address if "://" in address else f"//{address}").hostname or ""


def _is_here(host: str) -> bool:
    """Return whether a host is this machine: one whose address can be listened on."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
        with socket.socket(found[0][0]) as trial:
            trial.bind(found[0][4])
    except OSError:
        return False
    return True
