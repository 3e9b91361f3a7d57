"""What a power loss leaves of a store in a folder: the order of writes, renames and flushes, recorded and checked."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from impart_core.base.files import sync_folder
from impart_core.store.names import tag
from impart_core.store.store import Store
from tests.impart_core.store.samples import sample, small_delta

MANIFEST = "manifest.json"


class Disk:
    """Knows which files and names would be there if the power failed now.

    The content of a file is on disk once it was flushed, a name once its folder was flushed since it appeared there.
    """

    def __init__(self, root: Path) -> None:
        """Watch what lies below a folder, which is on disk itself."""
        self.root = root
        self.flushed: set[int] = set()  # inodes whose content is on disk
        self.named: dict[Path, int] = {}  # names on disk, and the inodes that they lead to
        self.placed: list[Path] = []  # files that got their name, in order
        self.on_place: Callable[[Path], None] = lambda _: None

    def sync(self, descriptor: int) -> None:
        """Enter that a file or folder was flushed."""
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        self.flushed.add(os.fstat(descriptor).st_ino)
        if path.is_dir() and self.root in (path, *path.parents):
            self.named.update({child: child.stat().st_ino for child in path.iterdir()})

    def place(self, target: Path) -> None:
        """Enter that a file got its name."""
        self.placed.append(target)
        self.on_place(target)

    def holds(self, path: Path, below: Path | None = None) -> bool:
        """Return whether a file would be there with its content, under its name, in folders that are there.

        Those from `below` upwards are taken to be.
        """
        steps = [step for step in (path, *path.parents) if (below or self.root) in step.parents]
        names = all(self.named.get(step) == step.stat().st_ino for step in steps)
        return names and path.stat().st_ino in self.flushed


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    if not Path("/proc/self/fd").exists():
        pytest.skip("finds what was flushed under /proc")
    disk = Disk(tmp_path)
    fsync = os.fsync

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        disk.sync(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    for name in ("replace", "rename", "link"):
        monkeypatch.setattr(os, name, _placing(disk, getattr(os, name)))
    yield disk


def _placing(disk: Disk, move: Callable[..., None]) -> Callable[..., None]:
    def moved(source: Any, target: Any, **options: Any) -> None:
        move(source, target, **options)
        disk.place(Path(target))

    return moved


def files_of(store: Store, artifact_id: str) -> list[Path]:
    manifest = store.manifest(artifact_id)
    folder = Path(store.url) / "artifacts" / artifact_id
    return [folder / entry.path for entry in manifest.files]


def test_all_that_a_manifest_or_a_name_stands_for_is_on_disk_before_it(disk: Disk, tmp_path: Path) -> None:
    store = Store(tmp_path / "new" / "folder" / "store")
    checked = []

    def check(target: Path) -> None:
        if target.name == MANIFEST:  # from now on it may be there, if its folder is
            own, folder = files_of(store, target.parent.name), target.parent
            assert [path for path in own if not disk.holds(path, below=folder)] == []
            above = [folder.with_name(parent) / MANIFEST for parent in store.manifest(folder.name).parents]
            assert [path for path in above if not disk.holds(path)] == []
            checked.append(target)
        elif "refs" in target.parts:
            assert [path for path in checked if not disk.holds(path)] == []
            checked.append(target)

    disk.on_place = check
    delta = small_delta(store)
    tag(store, "math@prod", delta.id)
    assert len(checked) == 5 + 2  # manifests, and the name's move with its copy
    assert [path for path in checked if not disk.holds(path)] == []


@pytest.mark.parametrize("missing", [None, "artifacts", "artifact", "file"])
def test_whoever_publishes_after_a_killed_writer_flushes_what_that_one_made(
    missing: str | None, disk: Disk, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    manifest, files = sample(tmp_path / "data")
    folder = Path(store.url) / "artifacts" / manifest.id
    if missing:
        {"artifacts": folder.parent, "artifact": folder, "file": folder}[missing].mkdir(parents=True)
    if missing == "file":
        (folder / MANIFEST).write_bytes(manifest.to_json())
        os.sync()
        disk.flushed.add((folder / MANIFEST).stat().st_ino)
    disk.named.clear()  # whatever was made so far was not flushed
    store.publish(manifest, files)
    for path in (folder / MANIFEST, *files_of(store, manifest.id)):
        steps = [step for step in (path, *path.parents) if Path(store.url) in step.parents]
        assert [step for step in steps if disk.named.get(step) != step.stat().st_ino] == [], missing


def test_what_is_overwritten_is_on_disk(disk: Disk, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.objects.create("catalog/x", b"first")
    store.objects.replace("catalog/x", b"second", b"first")
    assert disk.holds(Path(store.url) / "catalog" / "x")


def test_a_folder_that_cannot_be_flushed_or_is_gone_is_no_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync_folder(tmp_path / "gone")

    def refuse(_: int) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    sync_folder(tmp_path)


def test_a_disk_that_fails_to_flush_a_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        sync_folder(tmp_path)
