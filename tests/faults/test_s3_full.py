"""A full S3 server that gets space again, and a scratch folder that is full while the store is in S3."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from impart_core.base.errors import StoreError
from impart_core.store.store import Store
from tests.faults.conftest import Wanted
from tests.faults.places import QUICK, Place, assert_whole, unique
from tests.faults.tally import Tally
from tests.faults.warm import beside, run_warm, warm, warm_json
from tests.impart_core.store.samples import sample
from tests.servers import S3Server, running_s3
from tests.support import Environment

pytestmark = pytest.mark.faults

Pair = tuple[Path, Path]
Disk = Callable[[str], Path]


@pytest.fixture
def on_small_disk(small_disk: Disk, environment: Environment, tmp_path: Path) -> Iterator[Place]:
    """A store on a server whose disk takes half of the large pair's delta and factors."""
    disk = small_disk("10m")
    with running_s3(S3Server(tmp_path / "home", data=disk, min_free="0")) as server:
        yield Place(unique(), {**environment, **server.variables, **QUICK}, server.variables)


def publish_something(url: str, folder: str) -> None:
    """Publish two megabytes, and print why that cannot be."""
    try:
        Store(url).publish(*sample(Path(folder), {"data.bin": bytes(2 << 20)}))
    except StoreError as error:
        print(error)


def test_a_run_outlasts_a_full_server_that_gets_space(
    large_pair: Pair, wanted_large: Wanted, on_small_disk: Place, small_disk: Disk, tmp_path: Path, count: Tally
) -> None:
    place = on_small_disk
    run = ["compress", *map(str, large_pair), "--cr", "4", "--name", "full", "--store", place.url, "--json"]
    with warm(*run, environment=place.environment) as command:
        deadline = time.monotonic() + 60
        while shutil.disk_usage(tmp_path / "disk").free > 1 << 20:
            assert command.running, command.said()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(4)  # longer than s3fs tries by itself
        assert command.running, command.said()
        with beside(
            publish_something, place.url, str(tmp_path / "sample"), environment=place.environment
        ) as publishing:
            refused = publishing.wait()
        threading.Thread(target=small_disk, args=("200m",)).start()
        report = command.result()
    count("S3 server full")
    assert refused.stdout.startswith(f"The store {place.url} cannot be reached"), (refused.stdout, refused.stderr)
    assert report["retried"]
    assert_whole(place, wanted_large)
    assert run_warm("verify", "full", "--store", place.url, environment=place.environment).returncode == 0


def test_a_full_scratch_folder_with_a_store_in_s3(
    large_pair: Pair, wanted_large: Wanted, in_s3: Place, small_disk: Disk, count: Tally
) -> None:
    disk = small_disk("256k")
    small: Environment = {**in_s3.environment, "TMPDIR": str(disk)}
    run = ["compress", *map(str, large_pair), "--cr", "4", "--store", in_s3.url]
    done = run_warm(*run, environment=small)
    assert done.returncode == 2, done.stderr
    assert "No space left" in done.stderr
    assert str(disk) in done.stderr
    assert "Traceback" not in done.stderr
    count("scratch folder full")
    assert not list(disk.iterdir())
    small_disk("64m")
    warm_json(*run, environment=small)
    assert_whole(in_s3, wanted_large)
    small_disk("256k")
    read = run_warm(*run, "--verify-cache", environment=small)
    assert (read.returncode, "No space left" in read.stderr) == (2, True), read.stderr
    assert not list(disk.iterdir())
    assert_whole(in_s3, wanted_large)
