"""A model whose compression takes seconds, undisturbed runs, stores to break, and the count of what was broken."""

import subprocess
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from tests.faults import tally
from tests.faults.places import QUICK, Place, unique
from tests.faults.warm import warm_json
from tests.s3proxy import S3Proxy
from tests.servers import S3Server, running_s3
from tests.support import Environment, data_files, llama_shapes, random_tensors, run_json, save_checkpoint

Pair = tuple[Path, Path]
Wanted = dict[str, str]
MATRICES = 8 * 7  # of the large pair: its projections, in eight of its nine blocks
_PASSED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note which tests passed."""
    report = yield
    if report.when == "call":
        item.stash[_PASSED] = report.passed
    return report


@pytest.fixture
def count(request: pytest.FixtureRequest) -> Iterator[tally.Tally]:
    """Counts the faults that a test injects."""
    made = tally.Tally()
    yield made
    request.node.user_properties.append((tally.PROPERTY, [dict(made.found), request.node.stash.get(_PASSED, False)]))


@pytest.fixture(scope="session")
def large_pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Folders of a base and its fine-tune with nine blocks, each of which takes a third of a second."""
    root = tmp_path_factory.mktemp("large")
    shapes = llama_shapes(layers=8, hidden=384, intermediate=768, key_value=64)
    base = random_tensors(shapes, seed=0)
    deltas = random_tensors(shapes, seed=1, dtype=torch.float32, scale=0.02)
    finetuned = {name: (tensor.float() + deltas[name]).bfloat16() for name, tensor in base.items()}
    return save_checkpoint(root / "base", base), save_checkpoint(root / "finetuned", finetuned)


@pytest.fixture(scope="session")
def compress_large(large_pair: Pair) -> Callable[..., list[str]]:
    """Returns the arguments of the large pair's compression into a store."""

    def arguments(store: Path, *options: str) -> list[str]:
        return ["compress", *map(str, large_pair), "--cr", "4", "--store", str(store), *options]

    return arguments


@pytest.fixture(scope="session")
def undisturbed(
    compress_large: Callable[..., list[str]], environment: Environment, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The store of a compression of the large pair that nothing happened to."""
    store = tmp_path_factory.mktemp("undisturbed")
    report = run_json(*compress_large(store), environment=environment)
    assert (report["blocks"], report["cached_blocks"]) == (9, 0)
    assert (report["decompositions"], report["reused_factors"]) == (MATRICES, 0)
    assert [len(data_files(store, kind)) for kind in ("block", "factors")] == [9, 8]
    return store


@pytest.fixture(scope="session")
def wanted_large(undisturbed: Path) -> Wanted:
    """The files of the large pair's undisturbed run, with their SHA-256."""
    return data_files(undisturbed)


@pytest.fixture(scope="session")
def wanted(pair: Pair, environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Wanted:
    """The files of the small pair's undisturbed run, with their SHA-256."""
    store = tmp_path_factory.mktemp("wanted")
    warm_json("compress", *map(str, pair), "--cr", "4", "--store", str(store), environment=environment)
    return data_files(store)


@pytest.fixture(scope="session")
def s3_to_break(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server that tests may kill, restart and revoke, so long as they leave it as it was."""
    with running_s3(S3Server(tmp_path_factory.mktemp("s3"))) as server:
        yield server


@pytest.fixture
def in_folder(environment: Environment, tmp_path: Path) -> Place:
    """A new store in a folder."""
    return Place(str(tmp_path / "store"), environment)


@pytest.fixture
def in_s3(environment: Environment, s3_to_break: S3Server) -> Place:
    """A new store in S3."""
    variables = s3_to_break.variables
    return Place(unique(), {**environment, **variables, **QUICK}, variables)


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest) -> Place:
    """A new store: in a folder, and in S3."""
    made = request.getfixturevalue(f"in_{request.param}")
    assert isinstance(made, Place)
    return made


@pytest.fixture
def proxy(s3_to_break: S3Server) -> Iterator[S3Proxy]:
    """A proxy in front of the S3 server that breaks nothing yet."""
    with S3Proxy(s3_to_break.variables["AWS_ENDPOINT_URL"]) as between:
        yield between


@pytest.fixture
def behind_proxy(in_s3: Place, proxy: S3Proxy) -> Place:
    """A new store in S3 that commands reach through the proxy."""
    return Place(in_s3.url, {**in_s3.environment, "AWS_ENDPOINT_URL": proxy.url}, in_s3.server)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a disk of a given size in memory; mounting it again with another size resizes it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with ExitStack() as stack:

        def mount(size: str) -> Path:
            mounted = folder.is_mount()
            done = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"{'remount,' if mounted else ''}size={size}", "tmpfs", str(folder)],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode and not mounted:
                pytest.skip(f"a disk of a chosen size needs the right to mount one: {done.stderr.strip()}")
            assert done.returncode == 0, done.stderr
            if not mounted:
                stack.callback(_unmount, folder)
            return folder

        yield mount


def _unmount(folder: Path) -> None:
    """Take a disk away; a server that was killed may hold it for a moment longer."""
    for _ in range(50):
        if subprocess.run(["umount", str(folder)], capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.1)
    subprocess.run(["umount", str(folder)], check=True)
