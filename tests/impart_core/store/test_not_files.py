"""What lies where a file should be and is none: it is said what it is, and nothing waits for it."""

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from impart_core.artifacts.delta import Delta
from impart_core.base.errors import CorruptArtifactError
from impart_core.share.transfer import transfer
from impart_core.store.store import Store
from impart_core.store.verify import verify, verify_store
from tests.faults.hostile import time_limit
from tests.impart_core.pipeline import compress, config_of, stored_path

Pair = tuple[Path, Path]


def bind(place: Path) -> None:
    """Leave a socket at a place whose name may be too long for one."""
    short = place.parent.parent / "s"
    with socket.socket(socket.AF_UNIX) as bound:
        folder = os.open(short.parent, os.O_RDONLY)
        try:
            bound.bind(f"/proc/self/fd/{folder}/s")
        finally:
            os.close(folder)
    short.rename(place)


KINDS: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "device": lambda place: place.symlink_to("/dev/zero"),
    "socket": bind,
}


@pytest.fixture(autouse=True)
def limited() -> Iterator[None]:
    with time_limit(60):
        yield


@pytest.fixture
def delta(pair: Pair, tmp_path: Path) -> Delta:
    return compress(Store(tmp_path / "store"), *pair, config_of(4))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", ["data", "manifest"])
def test_no_file_is_a_fault_that_says_what_it_is(
    which: str, kind: str, delta: Delta, pair: Pair, tmp_path: Path
) -> None:
    data = stored_path(delta, 1)
    place = data if which == "data" else data.parent / "manifest.json"
    place.unlink()
    KINDS[kind](place)
    store, said = delta.store, f"{place} is a {kind} where a file should be"
    assert any(said in fault for fault in verify(store, delta.id).faults)
    assert any(str(place) in fault for fault in verify_store(store).faults)
    with pytest.raises(CorruptArtifactError, match=said):
        transfer(store, Store(tmp_path / "other"), [delta.id])
    if kind == "folder" or which == "manifest":
        with pytest.raises(Exception, match=r"where a file should be|Is a directory"):
            compress(store, *pair, config_of(4))
        shutil.rmtree(place) if kind == "folder" else place.unlink()
    assert compress(store, *pair, config_of(4)).id == delta.id
    assert verify_store(store).faults == ()
