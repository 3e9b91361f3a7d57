"""A node of a cluster that is killed with a block in its hands: the block is made elsewhere, to the same bytes."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clusters import Nodes, some_nodes
from tests.support import Environment, halt_when, manifests, start_impart, whole_files

pytestmark = [pytest.mark.faults, pytest.mark.slow]

Arguments = Callable[..., list[str]]


@pytest.fixture(params=["dask", "ray"])
def runner(request: pytest.FixtureRequest) -> str:
    """Each kind of cluster."""
    return str(request.param)


@pytest.fixture
def nodes(runner: str, environment: Environment, tmp_path: Path) -> Iterator[Nodes]:
    """A cluster of two nodes."""
    with some_nodes(runner, tmp_path / "cluster", environment) as found:
        yield found


def test_a_run_that_loses_a_node_half_way_completes_with_the_same_bytes(
    runner: str,
    nodes: Nodes,
    compress_large: Arguments,
    wanted_large: dict[str, str],
    environment: Environment,
    tmp_path: Path,
) -> None:
    store = tmp_path / "store"
    process = start_impart(
        *compress_large(store, "--runner", runner, "--cluster", nodes.address, "--json"), environment=environment
    )
    actions = {"SIGSTOP": nodes.halt, "SIGCONT": nodes.go_on}
    try:
        # It is looked at while the node stands still, so that what it has begun by then is lost with it.
        halt_when(
            lambda: 2 <= len(manifests(store, "factors")) < 8,
            lambda number: actions[number.name](1),
            lambda: process.poll() is None,
        )
        nodes.kill(1)
        out, said = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert json.loads(out)["blocks"] == 9
    assert whole_files(store) == wanted_large
