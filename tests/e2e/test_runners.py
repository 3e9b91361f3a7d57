"""One request, one result: in threads, on a Ray cluster and on a Dask cluster of two nodes each."""

import errno
import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import yaml
from prefect import Flow
from prefect.context import serialize_context

from impart_core import tinyzoo
from impart_core.base.errors import ConfigError
from impart_core.base.numerics import auto_device
from impart_core.base.retry import Retried, RetryPolicy, recording
from impart_core.base.spread import Spread
from impart_core.engine.executor import Need, stage
from impart_tasks.cluster import Cluster, connected
from impart_tasks.executor import PrefectExecutor
from tests.clusters import Nodes, lineage, some_nodes
from tests.support import (
    Environment,
    data_files,
    halt_when,
    llama_shapes,
    manifests,
    random_tensors,
    run_impart,
    run_json,
    save_checkpoint,
    start_impart,
)

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

BASE, MATH = str(tinyzoo.path("base")), str(tinyzoo.path("math"))
MADE = ("block", "factors", "delta", "trial", "calibration")
FEW = 16_000  # bytes: two thirds of it are Prefect's own settings and its record of the run
Made = tuple[list[Any], dict[str, str], dict[str, Any]]
QUICK = RetryPolicy(retries=2, first_delay=0, longest_delay=0, limit_seconds=60)


@pytest.fixture(scope="module", params=["dask", "ray"])
def runner(request: pytest.FixtureRequest) -> str:
    """Each kind of cluster."""
    return str(request.param)


@pytest.fixture(scope="module")
def nodes(runner: str, environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A cluster of two nodes, the second of which says that it has a GPU."""
    with some_nodes(runner, tmp_path_factory.mktemp("cluster"), environment, gpus=(0, 1)) as found:
        yield found


def write_zoo(folder: Path) -> Path:
    """Write a zoo of a calibrated model with a gate, a merge and a search."""
    model = {"name": "math", "base": BASE, "finetuned": MATH}
    step = {"method": "impart-qt", "cr": 32, "calibration": {"source": "tinyzoo:math", "sequences": 4, "length": 32}}
    gate = {"tasks": ["tinyzoo_math"], "loses": 1, "limit": 4}
    merge = {
        "merge_method": "linear",
        "base_model": BASE,
        "models": [{"model": MATH, "parameters": {"weight": 0.5}}],
        "impart": {"compress": {"cr": 8, "method": "lowrank"}},
    }
    search = {
        "compress": {"base": BASE, "finetuned": MATH, "method": "lowrank", "cr": {"choose": [16, 32]}},
        "tasks": {"tinyzoo_math": "answer_loss"},
        "sampler": "grid",
        "items": [4],
    }
    path = folder / "zoo.yaml"
    text = {
        "zoo": "team",
        "device": "cpu",
        "recipes": {"default": {"steps": [step], "gate": gate}},
        "models": [model],
        "merges": [{"name": "half", "merge": merge}],
        "searches": [{"name": "best", "search": search}],
    }
    path.write_text(yaml.safe_dump(text))
    return path


@pytest.fixture(scope="module")
def in_threads(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """What a zoo's run in threads makes."""
    folder = tmp_path_factory.mktemp("threads")
    return run_zoo(folder, environment)


def run_zoo(folder: Path, environment: Environment, *options: str) -> Made:
    """Run the zoo; return what became of each entry, all files' SHA-256, and evaluations but for their seconds."""
    store = folder / "store"
    arguments = ["zoo", "run", str(write_zoo(folder)), "--store", str(store), *options, "--json"]
    done = run_impart(*arguments, environment=environment, timeout=1200)
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)
    outcomes = [[one[name] for name in ("name", "status", "artifact")] for one in run["outcomes"]]
    evaluations = {
        made: {**json.loads(path.read_text()), "seconds": None}
        for made in manifests(store, "evaluation")
        for path in (store / "artifacts" / made).glob("results.*.json")
    }
    return outcomes, data_files(store, *MADE), evaluations


def test_a_zoo_has_the_same_ids_and_bytes_whatever_runs_it(
    runner: str,
    nodes: Nodes,
    in_threads: Made,
    environment: Environment,
    tmp_path: Path,
) -> None:
    made = run_zoo(tmp_path, environment, "--runner", runner, "--cluster", nodes.address)
    outcomes, files, evaluations = made
    assert [status for _, status, _ in outcomes] == ["promoted"] * 3
    assert len(evaluations) == 2
    assert files == in_threads[1]
    assert made == in_threads


def test_a_block_that_cannot_be_made_ends_the_run_with_its_own_sentence(
    runner: str, nodes: Nodes, environment: Environment, tmp_path: Path
) -> None:
    tensors = random_tensors(llama_shapes())
    base = save_checkpoint(tmp_path / "base", tensors)
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"] * float("nan")
    broken = save_checkpoint(tmp_path / "broken", tensors)
    arguments = ["compress", str(base), str(broken), "--cr", "4", "--device", "cpu"]
    said = []
    for number, options in enumerate([[], ["--runner", runner, "--cluster", nodes.client]]):
        store = str(tmp_path / f"store{number}")
        done = run_impart(*arguments, "--store", store, *options, environment=environment)
        assert done.returncode == 2, done.stderr
        said.append([line for line in done.stderr.splitlines() if line.startswith("error: ")])
    assert said[0] == said[1]
    assert "model.layers.1.mlp.up_proj.weight" in said[0][0]


def test_ctrl_c_ends_a_run_and_keeps_what_is_finished(
    runner: str, nodes: Nodes, environment: Environment, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    arguments = ["compress", BASE, MATH, "--cr", "16", "--device", "cpu", "--store", str(store)]
    process = start_impart(*arguments, "--runner", runner, "--cluster", nodes.client, environment=environment)
    try:
        halt_when(
            lambda: manifests(store, "factors") and not manifests(store, "delta"),
            process.send_signal,
            lambda: process.poll() is None,
        )
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGCONT)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "Stopped. Finished blocks are kept" in said
    finished = manifests(store)
    again = run_json(*arguments, environment=environment)
    assert again["blocks"] == 4
    assert finished.items() <= manifests(store).items()


@stage("stumble", "stumble {marker}", QUICK)
def stumble(marker: str) -> list[int]:
    """Warn, and fail the first time."""
    if not os.path.exists(marker):  # noqa: PTH110 - it stands for the world
        Path(marker).touch()
        logging.getLogger("impart_core.store").warning("it is slippery")
        raise OSError(errno.EIO, "slipped")
    return lineage()


class OddError(Exception):
    """An error that cannot be pickled."""

    def __init__(self, one: int, other: int) -> None:
        """Take two, and pass on one."""
        super().__init__(one)


@stage("fall", "fall {depth}", QUICK)
def fall(depth: int, oddly: bool) -> int:
    """Fail for good."""
    raise OddError(depth, depth) if oddly else ConfigError(f"The hole is {depth} m deep. Give a ladder.")


@pytest.fixture
def in_flow(runner: str, nodes: Nodes, prefect_api: str, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Calls a function of a connected cluster in a flow."""
    spread = Spread(runner=runner, cluster=nodes.address)  # type: ignore[arg-type]
    store = str(tmp_path / "store")

    def run(work: Callable[[Cluster], Any], device: str = "cpu") -> Any:
        def body() -> Any:
            with connected(spread, store, device, None) as cluster:
                assert cluster is not None
                return work(cluster)

        return Flow(body, name="test")()

    yield run


def test_what_a_node_retries_and_warns_of_is_told_here(
    in_flow: Callable[..., Any], nodes: Nodes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def work(cluster: Cluster) -> bool:
        assert cluster.slots == 2
        assert PrefectExecutor(cluster).at_once(None) == 2
        found = PrefectExecutor(cluster).submit(stumble, str(tmp_path / "marker")).result()
        return nodes.has(0, found) or nodes.has(1, found)

    with recording() as ledger:
        assert in_flow(work)
    label = f"stumble {tmp_path / 'marker'}"
    assert ledger.retried == (Retried(what=label, times=1, why=f"OSError: [Errno {errno.EIO}] slipped"),)
    assert caplog.messages.count("it is slippery") == 1


def test_errors_of_a_node_arrive_as_they_are_or_in_words(in_flow: Callable[..., Any]) -> None:
    def work(cluster: Cluster) -> list[str]:
        pending = [PrefectExecutor(cluster).submit(fall, 3, oddly) for oddly in (False, True)]
        return [str(failure(one)) for one in pending]

    def failure(one: Any) -> BaseException:
        with pytest.raises(Exception) as caught:
            one.result()
        return caught.value

    plain, odd = in_flow(work)
    assert plain == "The hole is 3 m deep. Give a ladder."
    assert odd == "fall 3: OddError: 3"


def test_what_passes_the_driver_for_a_task_is_small(
    in_flow: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sent: list[int] = []
    came: list[int] = []

    def work(cluster: Cluster) -> None:
        submit = cluster.runner.submit

        def weighed(task: Any, parameters: dict[str, Any]) -> Any:
            sent.append(len(cloudpickle.dumps((task, parameters, serialize_context()))))
            return submit(task, parameters)

        monkeypatch.setattr(cluster.runner, "submit", weighed)
        pending = PrefectExecutor(cluster).submit(stumble, str(tmp_path / "marker"))
        pending.result()
        came.append(len(pending.future.result()))  # type: ignore[attr-defined]

    big = "x" * 1_000_000  # of a flow, as checkpoints and progress bars are
    in_flow(lambda cluster: work(cluster) or len(big) * 0)
    print("bytes out and back", sent, came)
    assert sent
    assert max(sent) < FEW
    assert max(came) < FEW


@stage("stand", "stand for {seconds} s", QUICK, need=lambda seconds, memory: Need(device=True, memory=memory))
def stand(seconds: float, memory: int) -> tuple[list[int], str]:
    """Take a while, and say in which process and on what."""
    time.sleep(seconds)
    return lineage(), auto_device()


def test_what_needs_a_device_goes_to_the_node_that_has_one(in_flow: Callable[..., Any], nodes: Nodes) -> None:
    def work(cluster: Cluster) -> list[tuple[bool, str]]:
        assert cluster.has_gpu
        # More memory than any node has is no reason to wait for ever.
        pending = [PrefectExecutor(cluster).submit(stand, 0.1, memory) for memory in (0, 1 << 20, 1 << 60)]
        return [(nodes.has(1, found), device) for found, device in (one.result() for one in pending)]

    assert in_flow(work, "auto") == [(True, "cuda")] * 3
    assert {device for _, device in in_flow(work, "cpu")} == {"cpu"}


def test_tasks_that_need_a_device_share_a_process(in_flow: Callable[..., Any]) -> None:
    def work(cluster: Cluster) -> list[int]:
        return [PrefectExecutor(cluster).submit(stand, 0.0, 0).result()[0][0] for _ in range(4)]

    assert len(set(in_flow(work, "auto"))) == 1  # one of its own would import torch for each
