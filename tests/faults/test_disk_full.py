"""A disk that is full while something is written: a sentence, nothing half-published, and a second run completes."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import Environment, data_files, manifests, run_impart, run_json

pytestmark = pytest.mark.faults

Arguments = Callable[..., list[str]]
Disk = Callable[[str], Path]


def assert_says_full(arguments: list[str], environment: Environment, where: str) -> None:
    """Check that a command ends with exit code 2 and a sentence that names the place."""
    done = run_impart(*arguments, environment=environment)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "No space left" in done.stderr
    assert where in done.stderr


def assert_all_whole(store: Path) -> None:
    """Check that each published artifact has all its files as recorded, and that no scratch file is left."""
    for artifact, manifest in manifests(store).items():
        for entry in manifest["files"]:
            data = (store / "artifacts" / artifact / entry["path"]).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["size"], entry["sha256"])
    assert not [path for path in store.rglob("*") if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("size", "option", "kinds"),
    # Each layer's block takes 0.6 MB, its factors 0.7 MB.
    [("2m", "--no-keep-factors", ["block"]), ("5m", "--keep-factors", ["block", "factors"])],
)
def test_a_full_store(
    size: str,
    option: str,
    kinds: list[str],
    small_disk: Disk,
    compress_large: Arguments,
    undisturbed: Path,
    environment: Environment,
) -> None:
    disk = small_disk(size)
    store = disk / "store"
    assert_says_full(compress_large(store, "--workers", "2", option), environment, str(store))
    finished = [len(manifests(store, kind)) for kind in kinds]
    assert all(1 <= number < 8 for number in finished)
    assert_all_whole(store)
    small_disk("64m")
    report = run_json(*compress_large(store, "--workers", "2", option), environment=environment)
    assert (report["blocks"], report["cached_blocks"]) == (9, finished[0])
    assert data_files(store) == data_files(undisturbed, *kinds)
    assert run_json("verify", report["artifact"], "--store", str(store))["ok"]


def test_a_full_scratch_folder(
    small_disk: Disk, compress_large: Arguments, environment: Environment, tmp_path: Path
) -> None:
    disk, store = small_disk("256k"), tmp_path / "store"
    small: Environment = {**environment, "TMPDIR": str(disk)}
    assert_says_full(compress_large(store), small, str(disk))
    assert_all_whole(store)
    assert not list(disk.iterdir())
    small_disk("64m")
    assert run_json(*compress_large(store), environment=small)["blocks"] == 9
    assert not list(disk.iterdir())


def test_a_full_output_disk(
    small_disk: Disk, large_pair: tuple[Path, Path], undisturbed: Path, environment: Environment
) -> None:
    disk = small_disk("8m")  # the model takes 20 MB
    out = disk / "out"
    (artifact,) = manifests(undisturbed, "delta")
    arguments = ["reconstruct", artifact, "--base", str(large_pair[0]), "--out", str(out), "--store", str(undisturbed)]
    assert_says_full(arguments, environment, str(out))
    assert not list(disk.iterdir())
    small_disk("64m")
    run_json(*arguments, environment=environment)
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors"}
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (out, large_pair[1])]
    assert sizes[0] == sizes[1]
