"""What every test gets: its own store, cache and Prefect home, and one real Prefect server for those that need it."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from impart_core.checkpoint.index import Checkpoint, open_checkpoint
from tests.faults import tally, warm
from tests.servers import s3_server
from tests.support import make_pair

os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A kernel on two threads takes far longer where another worker has the second core: here, and in commands.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
hypothesis.settings.register_profile("any speed", deadline=None)  # a verdict depends on no machine's speed
hypothesis.settings.load_profile("any speed")
# Whole files go to workers, these first, the longest before all: one that came last would be waited for alone.
LONG_FILES = [
    "docs/test_operations",
    "e2e/test_deployments",
    "e2e/test_zoo",
    "faults/test_search",
    "e2e/test_runners",
    "e2e/test_mlflow",
    "e2e/test_team",
    "faults/test_calibration",
    "e2e/test_search",
    "faults/test_clock",
    "faults/test_lost_nodes",
    "e2e/test_failure",
    "faults/test_kill_anywhere",
    "impart_core/evaluation/test_code_tasks",
    "impart_core/evaluation/test_harness",
    "faults/test_kill",
    "e2e/test_quantize",
    "e2e/test_architectures",
    "e2e/test_evaluate",
    "e2e/test_merge",
    "e2e/test_calibrated",
    "faults/test_damage",
    "e2e/test_factors",
    "e2e/test_compress",
    "faults/test_s3_trouble",
    "faults/test_s3_outage",
    "faults/test_together",
    "e2e/test_sources",
    "e2e/test_wheel",
    "faults/test_names",
    "faults/test_hostile_sizes",
    "e2e/test_golden",
    "e2e/test_run_page",
    "faults/test_worker",
    "e2e/test_transfer",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take long first; the order within a file stays."""
    order = {name: number for number, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: order.get(item.nodeid.partition(".py")[0].removeprefix("tests/"), len(order)))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count the faults that a test injected, in whichever process it ran."""
    for name, value in report.user_properties if report.when == "teardown" else ():
        if name == tally.PROPERTY:
            tally.add(*value)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many faults there were."""
    if tally.injected:
        terminalreporter.write_line(tally.summary())


@pytest.fixture(autouse=True)
def _own_places(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test out of the user's folders."""
    root = tmp_path_factory.mktemp("places")
    monkeypatch.setenv("IMPART_STORE", str(root / "store"))
    monkeypatch.setenv("IMPART_CACHE", str(root / "cache"))


@pytest.fixture(autouse=True, scope="module")
def _environment_of_modules() -> Iterator[None]:
    with warm.as_found():
        yield


@pytest.fixture(autouse=True)
def _environment_of_tests() -> Iterator[None]:
    with warm.as_found():
        yield


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Let the test's kernels run on two threads, as a user's may."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a small base and its fine-tune (two layers, bfloat16)."""
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="session")
def opened(pair: tuple[Path, Path]) -> tuple[Checkpoint, Checkpoint]:
    """The small base and its fine-tune, opened."""
    return open_checkpoint(pair[0]), open_checkpoint(pair[1])


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real Prefect server with a home of its own, also set for child processes."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from impart_flows.embedded import prefect_server

    previous = os.environ.get("PREFECT_HOME"), os.environ.get("PREFECT_API_URL")
    os.environ["PREFECT_HOME"] = str(tmp_path_factory.mktemp("prefect"))
    with prefect_server() as url, temporary_settings({PREFECT_API_URL: url, **warm.NO_HEARTBEATS}):
        os.environ["PREFECT_API_URL"] = url
        yield url
    for name, value in zip(("PREFECT_HOME", "PREFECT_API_URL"), previous, strict=True):
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.fixture(scope="session")
def environment(prefect_api: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """What commands run with that several tests share: the Prefect server, and one cache of digests."""
    home = os.environ["PREFECT_HOME"]
    return {
        "PREFECT_API_URL": prefect_api,
        "PREFECT_HOME": home,
        "IMPART_CACHE": str(tmp_path_factory.mktemp("cache")),
    }


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The variables that point a client to a real S3 server, which holds the bucket `impart`."""
    with s3_server(tmp_path_factory.mktemp("s3")) as variables:
        yield variables
