"""One compression as a flow, in a process of its own: prints its report and its wall time as JSON."""

import json
import sys
from time import perf_counter

from impart_core.blocks.request import CompressConfig
from impart_core.engine.requests import CompressRequest
from impart_flows.compress import run_compress
from impart_flows.embedded import prefect_server
from tests.bench.busy import busy_seconds, watch_kernels


def main() -> None:
    """Run the request that is given as JSON: base, finetuned, store, workers, and the settings of the compression."""
    request = json.loads(sys.argv[1])
    config = CompressConfig(**request.pop("config"))
    watch_kernels()
    with prefect_server():
        started, before = perf_counter(), busy_seconds()
        report = run_compress(CompressRequest(config=config, **request))
        wall, busy = perf_counter() - started, busy_seconds() - before
    print(json.dumps({**report.model_dump(mode="json"), "wall_seconds": wall, "busy_seconds": busy}))


main()
