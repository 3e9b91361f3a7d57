"""One worker against two, for each runner: how much of the second one a compression gets."""

import os
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from impart_core import tinyzoo
from impart_core.checkpoint.digest import tensor_digests
from impart_core.checkpoint.index import open_checkpoint
from impart_flows.embedded import prefect_server
from tests.bench.synthetic import save_pairs
from tests.clusters import some_nodes
from tests.support import run_json

RUNNERS = ("threads", "dask", "ray")
RUNS = 3
LAYERS = 4
SETTINGS = ("--cr", "32", "--factors-for", "32")  # as in `pipeline`: as little arithmetic as there can be


def measure_runners() -> dict[str, float]:
    """Compress a model of four layers with one worker and with two; return the ratio of the seconds, by runner.

    Nodes are processes of this machine, started and warm before the clock is; medians of a few runs in turn.
    `runners_seconds_threads` is the time of two threads; `runners_over_threads_…` that of two nodes over it.
    """
    with tempfile.TemporaryDirectory() as scratch, prefect_server() as api:
        pair = save_pairs(Path(scratch), (LAYERS,))[LAYERS]
        for folder in pair:
            tensor_digests(open_checkpoint(folder))  # remembered from here on
        environment = {"PREFECT_API_URL": api}
        seconds = {
            (runner, workers): _median(runner, workers, pair, Path(scratch), environment)
            for runner in RUNNERS
            for workers in (1, 2)
        }
    two = seconds["threads", 2]
    return {
        "runners_seconds_threads": two,
        **{f"runners_speedup_{one}": seconds[one, 1] / seconds[one, 2] for one in RUNNERS},
        **{f"runners_over_threads_{one}": seconds[one, 2] / two for one in RUNNERS[1:]},
    }


def _median(runner: str, workers: int, pair: tuple[Path, Path], scratch: Path, environment: dict[str, str]) -> float:
    with _options(runner, workers, scratch, environment) as options:
        tiny = (tinyzoo.path("base"), tinyzoo.path("math"))
        _compress(tiny, scratch, options, environment)  # every worker has loaded its libraries by its end
        return statistics.median(_compress(pair, scratch, options, environment) for _ in range(RUNS))


@contextmanager
def _options(runner: str, workers: int, scratch: Path, environment: dict[str, str]) -> Iterator[list[str]]:
    if runner == "threads":
        yield ["--workers", str(workers)]
        return
    folder = Path(tempfile.mkdtemp(dir=scratch))
    with some_nodes(runner, folder, {**os.environ, **environment}, (0,) * workers) as nodes:
        yield ["--runner", runner, "--cluster", nodes.address]


def _compress(pair: tuple[Path, Path], scratch: Path, options: list[str], environment: dict[str, str]) -> float:
    with tempfile.TemporaryDirectory(dir=scratch) as store:
        arguments = ["compress", *map(str, pair), *SETTINGS, "--store", store, *options]
        return float(run_json(*arguments, environment=environment)["seconds"])
