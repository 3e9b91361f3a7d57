"""How many requests a run makes of an S3 server that holds the checkpoints and the store, counted by a proxy.

`python -m tests.bench.requests` prints, for models of 1 and of 4 layers, the requests of each verb for the checkpoints
and for the store.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import s3fs

from impart_core import tinyzoo
from tests.s3proxy import S3Proxy
from tests.servers import s3_server
from tests.support import make_pair, run_json

LAYERS = (1, 4)
Counts = dict[str, int]


def measure_requests(models: Mapping[str, int] | None = None) -> dict[str, dict[str, Counts]]:
    """Return requests by model and verb: `base`, `finetuned`, `store`.

    Args:
        models: layers of each by name; 0 stands for the tiny zoo, of which a delta is measured on two tasks as well.
    """
    with tempfile.TemporaryDirectory() as scratch, s3_server(Path(scratch) / "s3") as variables:
        models = models or {f"{layers} layers": layers for layers in LAYERS}
        zoo = tinyzoo.path("base"), tinyzoo.path("math")
        pairs = {
            name: make_pair(Path(scratch) / name, layers=layers) if layers else zoo for name, layers in models.items()
        }
        with S3Proxy(variables["AWS_ENDPOINT_URL"]) as proxy:
            environment = {**variables, "AWS_ENDPOINT_URL": proxy.url}
            return {
                name: _verbs(pair, name.replace(" ", "-").replace(",", ""), proxy, environment, Path(scratch))
                for name, pair in pairs.items()
            }


def _verbs(
    pair: tuple[Path, Path], name: str, proxy: S3Proxy, environment: dict[str, str], scratch: Path
) -> dict[str, Counts]:
    fs = s3fs.S3FileSystem(
        key=environment["AWS_ACCESS_KEY_ID"],
        secret=environment["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=environment["AWS_ENDPOINT_URL"],
    )
    base, finetuned = (f"s3://impart/{name}/{side}" for side in ("base", "finetuned"))
    for folder, url in zip(pair, (base, finetuned), strict=True):
        for file in (file for file in folder.iterdir() if file.is_file()):
            fs.put_file(str(file), f"{url}/{file.name}")
    store = ["--store", f"s3://impart/{name}/store"]
    cache = {**environment, "IMPART_CACHE": str(scratch / f"cache-{name}")}
    compress = ["compress", base, finetuned, "--cr", "4", "--name", "d", *store]
    out = ["--base", base, "--out", str(scratch / f"out-{name}")]
    commands = {
        "compress": compress,
        "compress again": compress,
        "reconstruct": ["reconstruct", "d", *out, *store],
    }
    if "tasks" in name:
        tasks = ["--tasks", "tinyzoo_math,tinyzoo_code", "--limit", "2"]
        commands["evaluate on two tasks"] = ["evaluate", "d", "--base", base, *tasks, *store]
    return {verb: _count(words, proxy, cache) for verb, words in commands.items()}


def _count(words: list[str], proxy: S3Proxy, environment: dict[str, str]) -> Counts:
    proxy.settle()
    before = len(proxy.requests)
    run_json(*words, environment=dict(environment))
    proxy.settle()
    seen: list[Any] = proxy.requests[before:]
    counts = dict.fromkeys(("base", "finetuned", "store"), 0)
    for request in seen:
        side = next((side for side in counts if f"/{side}" in request.path or f"%2F{side}" in request.path), "store")
        counts[side] += 1
    return counts


if __name__ == "__main__":
    named = {**{f"{layers} layers": layers for layers in LAYERS}, "tiny zoo, two tasks": 0}
    print(json.dumps(measure_requests(named), indent=1))
