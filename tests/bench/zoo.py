"""A zoo of many models with kernels that take no time, through the real flows, servers and store.

`python -m tests.bench.zoo --models 100 200` prints, for each size, what a first night and an unchanged second one take:
seconds, tasks, the servers' work and the memory of the process that runs the flow. Slopes between two sizes are what
larger zoos are reckoned from. Prefect keeps its records in PostgreSQL, and the store is on an S3 server. With `--out`
all figures are written down, and the memory over time; `--plot` draws that.
"""

import argparse
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tests.s3proxy import S3Proxy
from tests.servers import persistent_prefect, postgres_server, s3_server
from tests.support import finetune, llama_shapes, random_tensors, save_checkpoint, start_impart

BLOCKS = 40  # layers of a model; embeddings, head and the last norm are one block more
SHAPES = {"layers": BLOCKS, "hidden": 8, "intermediate": 8, "key_value": 8, "vocab": 16}
CONFIG = {
    "num_hidden_layers": BLOCKS,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "vocab_size": 16,
}
SECONDS_BETWEEN_LOOKS = 1.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Servers:
    """What a run talks to.

    Attributes:
        environment: variables that point a command to them.
        proxy: stands before the S3 server, and counts.
        database: the address of Prefect's database, as psql takes it.
        server: the process id of the Prefect server.
    """

    environment: Mapping[str, str]
    proxy: S3Proxy
    database: str
    server: int

    def counts(self) -> dict[str, float]:
        """Return what was done so far: transactions, task and flow runs, requests, the Prefect server's CPU seconds."""
        asked = (
            "select (select xact_commit + xact_rollback from pg_stat_database where datname = 'prefect'), "
            "(select count(*) from task_run), (select count(*) from flow_run)"
        )
        words = ["psql", self.database, "-tA", "-F", " ", "-c", asked]
        found = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
        self.proxy.settle()
        names = ("transactions", "task_runs", "flow_runs")
        return {
            **dict(zip(names, map(float, found), strict=True)),
            "store_requests": float(len(self.proxy.requests)),
            "server_cpu": _cpu_seconds(self.server),
        }


@dataclass
class Watch:
    """The resident memory of a process over time, in bytes, looked at until it ends."""

    pid: int
    sizes: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    cpu: float = 0.0
    over: threading.Event = field(default_factory=threading.Event)

    def look(self) -> None:
        """Note its memory, and the CPU time that it took, again and again."""
        began = time.perf_counter()
        while not self.over.wait(SECONDS_BETWEEN_LOOKS):
            try:
                text = Path(f"/proc/{self.pid}/status").read_text()
                self.cpu = _cpu_seconds(self.pid)
            except OSError:
                return
            for line in text.splitlines():
                if line.startswith("VmRSS"):
                    self.sizes.append(1024 * int(line.split()[1]))
                    self.seconds.append(round(time.perf_counter() - began, 1))

    def growth(self) -> float:
        """Return by how many bytes it grows in the time of the run, by a line through what comes after a third of it.

        By then all that is imported is there.
        """
        sizes, seconds = self.sizes[len(self.sizes) // 3 :], self.seconds[len(self.sizes) // 3 :]
        if len(set(seconds)) < 2:
            return 0.0
        return float(np.polyfit(seconds, sizes, 1)[0] * self.seconds[-1])


def measure_zoo(
    models: Sequence[int] = (20, 40), concurrency: int = 2
) -> tuple[dict[str, Any], dict[int, tuple[list[float], list[int]]]]:
    """Return figures of a first and of an unchanged night for zoos of so many models, and the slopes between them.

    Beside them the memory in the first night of each: seconds, and bytes. Of three unchanged nights the figures are
    those of the one in the middle by its seconds.

    Args:
        models: sizes, in rising order; each in a store, a database and a server of its own.
        concurrency: models worked on at once.
    """
    figures: dict[str, Any] = {}
    nights: dict[int, tuple[dict[str, float], dict[str, float]]] = {}
    memory: dict[int, tuple[list[float], list[int]]] = {}
    for size in models:
        with tempfile.TemporaryDirectory() as scratch, _servers(Path(scratch)) as servers:
            file = _zoo(Path(scratch), size, concurrency)
            first, memory[size] = _night(file, servers, size)
            unchanged = sorted((_night(file, servers, size)[0] for _ in range(3)), key=lambda night: night["seconds"])
            nights[size] = first, unchanged[1]
        for name, night in zip(("first", "second"), nights[size], strict=True):
            figures |= {f"zoo_{size}_{name}_{key}": value for key, value in night.items()}
    if len(models) > 1:
        small, large = models[0], models[-1]
        for number, name in enumerate(("first", "second")):
            before, after = nights[small][number], nights[large][number]
            for key in before:
                figures[f"zoo_slope_{name}_{key}"] = (after[key] - before[key]) / (large - small)
    return figures, memory


def _zoo(root: Path, size: int, concurrency: int) -> Path:
    """Save a base and so many fine-tunes of it; return the zoo's file."""
    base = random_tensors(llama_shapes(**SHAPES))
    save_checkpoint(root / "base", base, CONFIG)
    for number in range(size):
        tuned = finetune(base, seed=number)
        save_checkpoint(root / "models" / f"m{number:05}", tuned, CONFIG)
    zoo = {
        "zoo": "large",
        "store": "s3://impart/zoo",
        "recipes": {"default": {"steps": [{"method": "lowrank", "cr": 2}]}},
        "models": [{"find": str(root / "models" / "*"), "base": str(root / "base")}],
        "concurrency": concurrency,
    }
    file = root / "zoo.yaml"
    file.write_text(json.dumps(zoo))
    return file


def _night(file: Path, servers: Servers, size: int) -> tuple[dict[str, float], tuple[list[float], list[int]]]:
    """Run the zoo once; return what it took, and the memory over time."""
    before, began = servers.counts(), time.perf_counter()
    process = start_impart("zoo", "run", str(file), "--json", environment=dict(servers.environment))
    watch = Watch(process.pid)
    looking = threading.Thread(target=watch.look)
    looking.start()
    try:
        said, told = process.communicate()
    finally:
        watch.over.set()
        looking.join()
    seconds = time.perf_counter() - began
    assert process.returncode == 0, said + told
    outcomes = json.loads(said)["outcomes"]
    assert len(outcomes) == size, told
    assert {one["status"] for one in outcomes} <= {"promoted", "unchanged"}, told
    done = {key: value - before[key] for key, value in servers.counts().items()}
    tasks_a_second = {"tasks_a_second": done["task_runs"] / seconds} if done["task_runs"] else {}
    grown = watch.growth()
    own = {"cpu": watch.cpu, "peak_rss": float(max(watch.sizes, default=0)), "rss_growth_a_model": grown / size}
    return {"seconds": seconds, **done, **tasks_a_second, **own}, (watch.seconds, watch.sizes)


def draw(memory: Mapping[int, tuple[list[float], list[int]]], file: Path) -> None:
    """Draw the memory of each zoo's first night over the share of the night that is over."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    for size, (seconds, sizes) in memory.items():
        axes.plot([100 * one / seconds[-1] for one in seconds], [one / 1e6 for one in sizes], label=f"{size:,} models")
    axes.set(xlabel="% of the night", ylabel="resident memory, MB", ylim=(0, None))
    axes.legend()
    figure.savefig(file)


@contextmanager
def _servers(scratch: Path) -> Iterator[Servers]:
    with ExitStack() as stack:
        variables = stack.enter_context(s3_server(scratch / "s3"))
        proxy = stack.enter_context(S3Proxy(variables["AWS_ENDPOINT_URL"]))
        postgres = stack.enter_context(postgres_server())
        prefect = stack.enter_context(persistent_prefect(scratch / "prefect", postgres.variables))
        (url,) = (value for value in postgres.variables.values() if value.startswith("postgresql"))
        environment = {**variables, "AWS_ENDPOINT_URL": proxy.url, **prefect, "IMPART_CACHE": str(scratch / "cache")}
        pid = int((scratch / "prefect" / "server.pid").read_text())
        yield Servers(environment, proxy, url.replace("+asyncpg", ""), pid)


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS


def main() -> None:
    """Print the figures for zoos of the sizes that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, nargs="+", default=[20, 40])
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    asked = parser.parse_args()
    figures, memory = measure_zoo(asked.models, asked.concurrency)
    if asked.out:
        asked.out.write_text(json.dumps({"figures": figures, "memory": memory}))
    if asked.plot:
        draw(memory, asked.plot)
    for name, value in figures.items():
        print(f"{name:40} {value:.6g}", flush=True)


if __name__ == "__main__":
    main()
