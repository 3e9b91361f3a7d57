"""How a run is spread: what is refused before it begins, what is asked for, and what a node is looked at for."""

import pickle
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import ThreadPoolTaskRunner

from impart_core import __version__
from impart_core.base import errors, numerics
from impart_core.base.errors import ClusterError, ConfigError, DeviceError, ImpartError
from impart_core.base.numerics import auto_means, resolve_device
from impart_core.base.spread import Spread
from impart_core.engine.executor import Need
from impart_tasks import cluster
from impart_tasks.cluster import Cluster, check_runner, connected
from impart_tasks.remote import look, probe

CLUSTERS = ("ray", "dask")


@pytest.mark.parametrize("runner", CLUSTERS)
def test_a_missing_package_is_told_with_what_to_install(runner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: None if "prefect" in name else find_spec("json"))
    with pytest.raises(ConfigError, match=rf"needs prefect-{runner}, .*pip install 'impart-zoo\[{runner}\]'"):
        check_runner(Spread(runner=runner), "s3://bucket/store")  # type: ignore[arg-type]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the packages for installed: nothing here loads them."""
    monkeypatch.setattr(cluster, "find_spec", lambda _: find_spec("json"))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("runner", CLUSTERS)
def test_the_memory_of_one_process_is_no_store_for_several(runner: str) -> None:
    with pytest.raises(ConfigError, match=r"memory of one process.*s3://"):
        check_runner(Spread(runner=runner), "memory://store")  # type: ignore[arg-type]
    check_runner(Spread(), "memory://store")


@pytest.mark.usefixtures("installed")
def test_a_cluster_elsewhere_needs_a_prefect_server_that_it_reaches() -> None:
    elsewhere, here = (
        Spread(runner="dask", cluster="tcp://198.51.100.9:8786"),
        Spread(runner="dask", cluster="localhost:1"),
    )
    for url in ("http://127.0.0.1:4200/api", None):
        with temporary_settings({PREFECT_API_URL: url}):
            check_runner(here, "s3://bucket/store")
            with pytest.raises(ConfigError, match=r"198\.51\.100\.9.*set PREFECT_API_URL"):
                check_runner(elsewhere, "s3://bucket/store")
    with temporary_settings({PREFECT_API_URL: "http://198.51.100.10:4200/api"}):
        check_runner(elsewhere, "s3://bucket/store")


def test_threads_connect_to_nothing(tmp_path: Path) -> None:
    with connected(Spread(), str(tmp_path), "auto", None) as found:
        assert found is None


def cluster_of(*nodes: dict[str, float], device: str = "cpu") -> Cluster:
    """Return a cluster that offers these resources."""
    return Cluster(ThreadPoolTaskRunner(), 4, nodes, "GPU", "MEMORY", lambda _: nullcontext(), (), device)


@pytest.mark.parametrize(
    ("nodes", "device", "need", "wanted"),
    [
        ([{}, {"GPU": 8}], "cuda", Need(device=True), {"GPU": 1}),
        ([{"GPU": 8}], "cuda", Need(), {}),
        ([{"GPU": 8}], "cpu", Need(device=True), {}),
        ([{}], "cpu", Need(device=True, memory=10), {}),
        ([{}, {"MEMORY": 100.0}], "cpu", Need(memory=10), {"MEMORY": 10}),
        ([{"MEMORY": 90.0}, {"MEMORY": 100.0}], "cpu", Need(memory=1000), {"MEMORY": 100}),
        ([{"MEMORY": 100.0}, {"MEMORY": 40.0, "GPU": 1}], "cuda", Need(True, 60), {"GPU": 1, "MEMORY": 40}),
        ([{"MEMORY": 100.0}, {"GPU": 1}], "cuda", Need(True, 60), {"GPU": 1}),
    ],
)
def test_what_is_asked_for_is_what_some_node_has(
    nodes: list[dict[str, float]], device: str, need: Need, wanted: dict[str, float]
) -> None:
    assert cluster_of(*nodes, device=device).resources(need) == wanted


def test_auto_is_one_device_for_all_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerics.torch.cuda, "is_available", lambda: True)
    with auto_means("cpu"):  # a GPU that the run does not use
        assert resolve_device("auto").type == "cpu"
    assert resolve_device("auto").type == "cuda"
    monkeypatch.setattr(numerics.torch.cuda, "is_available", lambda: False)
    with auto_means("cuda"), pytest.raises(DeviceError):  # a node without the GPU that the run uses
        resolve_device("auto")


def test_a_node_says_its_version_and_whether_it_sees_the_store(tmp_path: Path) -> None:
    ours, theirs = str(tmp_path / "ours"), str(tmp_path / "theirs")
    with probe(ours) as name:
        assert look(ours, name) == (__version__, None)
        version, wrong = look(theirs, name)  # a folder of the same name on another machine
        assert version == __version__
        assert wrong is not None
        with pytest.raises(ClusterError, match=r"node two does not see the store .* a folder that all nodes share"):
            cluster._require_fit(ours, {"one": (version, None), "two": (version, wrong)})
    assert look(ours, name)[1] is not None


def test_a_node_of_another_version_is_refused() -> None:
    with pytest.raises(ClusterError, match=r"node two has impart 0\.0\.1"):
        cluster._require_fit("store", {"one": (__version__, None), "two": ("0.0.1", None)})


ERRORS = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, ImpartError)]


@pytest.mark.parametrize("kind", ERRORS, ids=lambda one: one.__name__)
def test_every_error_of_ours_travels(kind: type[ImpartError]) -> None:
    made: Any = pickle.loads(pickle.dumps(kind("What was found. What to do.")))
    assert type(made) is kind
    assert str(made) == "What was found. What to do."


@pytest.mark.parametrize("failures", [0, 2, 3])
def test_a_server_of_clients_that_aborts_is_asked_again(failures: int) -> None:
    done: list[str] = []

    def connect() -> None:
        done.append("connect")
        if done.count("connect") <= failures:
            raise ConnectionAbortedError("Starting Ray client server failed.")

    with nullcontext() if failures < 3 else pytest.raises(ConnectionAbortedError, match="client server"):
        cluster._connect(connect, lambda: done.append("undo"))
    assert done == (["connect", "undo"] * 3)[: min(6, 2 * failures + 1)]
    with pytest.raises(ConnectionError, match="no such host"):  # is told at once
        cluster._connect(lambda: _raise(ConnectionError("no such host")), lambda: None)


def _raise(error: Exception) -> None:
    raise error
