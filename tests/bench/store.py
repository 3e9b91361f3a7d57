"""A store of ten thousand artifacts on a real S3 server, and how many requests a compression makes of one."""

import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from impart_core.artifacts.block import BlockContent
from impart_core.artifacts.delta import DeltaContent
from impart_core.artifacts.evaluation import EvaluationContent
from impart_core.artifacts.factors import FactorsContent
from impart_core.base.canonical import digest_of
from impart_core.store.catalog import entry_of, note
from impart_core.store.manifest import Content, Manifest, Pointer
from impart_core.store.names import set_ref
from impart_core.store.provenance import Stopwatch
from impart_core.store.recipe import Recipe
from impart_core.store.store import Store, file_entry
from tests.s3proxy import S3Proxy
from tests.servers import s3_server
from tests.support import Environment, make_pair, run_json, start_impart

RUNS, LAYERS = 152, 32  # a run publishes a delta of 33 blocks, 32 factors and an evaluation: 10,184 artifacts in all
VERBS = {
    "ls": ["ls"],
    "lineage": ["lineage", "model-0"],
    "gc": ["gc", "--grace", "0s"],
    "du": ["du", "--by", "model"],
}
SIZES = (2, 4, 8)


def measure_store() -> dict[str, Any]:
    """Fill a store and return the seconds that verbs take on it, and a compression's requests by number of blocks.

    `ls_seconds`, `lineage_seconds`, `gc_seconds` and `du_seconds` are of whole commands, start-up included, on a
    store that holds 10,184 artifacts; `ls_without_catalogue_seconds` is of the first command after the catalogue was
    lost.
    `requests_per_block` and `requests_beside` come from compressions of models of different depth;
    `requests_deviation` is how far the middle one is from the straight line through the others.
    """
    with tempfile.TemporaryDirectory() as scratch, s3_server(Path(scratch) / "s3") as variables:
        os.environ.update(variables)
        store = Store("s3://impart/large")
        began = time.perf_counter()
        with ThreadPoolExecutor(8) as pool:
            count = sum(pool.map(lambda number: _publish_run(store, number, Path(scratch)), range(RUNS)))
        filled = time.perf_counter() - began
        seconds = {f"{verb}_seconds": _time(store, words) for verb, words in VERBS.items()}
        store.objects.delete(f"catalog/{name}" for name in store.objects.names("catalog"))
        lost = _time(store, VERBS["ls"])
        return {
            "artifacts": count,
            "publish_per_second": count / filled,
            **seconds,
            "ls_without_catalogue_seconds": lost,
            **_requests(variables, Path(scratch)),
        }


def _time(store: Store, words: list[str]) -> float:
    began = time.perf_counter()
    process = start_impart(*words, "--store", store.url, "--json")
    _, said = process.communicate()
    assert process.returncode == 0, said
    return time.perf_counter() - began


def _publish_run(store: Store, number: int, scratch: Path) -> int:
    """Publish what a compression of a large model and its evaluation leave, with data of a few bytes each."""
    made = list(_run(store, number, scratch))
    note(store, map(entry_of, made))
    set_ref(store, f"model-{number}", made[-2].id)
    return len(made)


def _run(store: Store, number: int, scratch: Path) -> Iterator[Manifest]:
    pointers = []
    for layer in range(LAYERS + 1):
        name = f"model.layers.{layer}"
        factors = _publish(store, scratch, ("factors", number, layer), FactorsContent(name=name, matrices={}))
        if layer < LAYERS:
            yield factors
        content = BlockContent(name=name, tensors={}, projection_bytes=8, projection_dense_bytes=64)
        block = _publish(store, scratch, ("block", number, layer), content, factors)
        pointers.append(Pointer(name=name, id=block.id, bytes=block.nbytes))
        yield block
    content = DeltaContent(
        blocks=tuple(pointers),
        base=digest_of("base"),
        finetuned=digest_of(number),
        finetuned_bytes=1,
        carried={},
        projection_bytes=8,
        projection_dense_bytes=64,
        data_bytes=8,
        cr_projection=8.0,
    )
    delta = _publish(store, scratch, ("delta", number), content, *(pointer.id for pointer in pointers))
    yield delta
    metrics = EvaluationContent(metrics={"task": {"exact_match": (0.5, 0.1)}}, items={"task": 4})
    yield _publish(store, scratch, ("evaluation", number), metrics, delta)


def _publish(store: Store, scratch: Path, key: tuple[Any, ...], content: Content, *parents: Manifest | str) -> Manifest:
    path = scratch / "-".join(map(str, key))
    path.write_text(path.name)
    manifest = Manifest.make(
        Recipe(
            operation="bench", version=1, config={"method": "impart", "cr": 16, "seed": 0}, inputs={"key": list(key)}
        ),
        files=(file_entry("data.bin", path),),
        content=content,
        parents=tuple(parent if isinstance(parent, str) else parent.id for parent in parents),
        provenance=Stopwatch().provenance(),
    )
    return store.publish(manifest, {"data.bin": path})


def _requests(variables: dict[str, str], scratch: Path) -> dict[str, Any]:
    """Compress models of different depth through a proxy that counts, each twice."""
    made, again = {}, {}
    for layers in SIZES:
        pair = make_pair(scratch / f"pair-{layers}", layers=layers)
        words = ["compress", *map(str, pair), "--cr", "4", "--store", f"s3://impart/requests-{layers}"]
        for counts in (made, again):
            with S3Proxy(variables["AWS_ENDPOINT_URL"]) as proxy:
                environment: Environment = {"AWS_ENDPOINT_URL": proxy.url}
                report = run_json(*words, environment=environment)
                proxy.settle()
                counts[report["blocks"]] = proxy.count()
    return {
        "requests_by_blocks": made,
        "requests_of_a_cached_run": again,
        **_line(made),
    }


def _line(counts: dict[int, int]) -> dict[str, float]:
    (few, low), (some, middle), (many, high) = counts.items()
    slope = (high - low) / (many - few)
    straight = low + slope * (some - few)
    return {
        "requests_per_block": slope,
        "requests_beside": low - slope * few,
        "requests_deviation": abs(middle - straight) / straight,
    }
