"""A model whose compression takes seconds, an undisturbed run of it, and disks that are too small."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from tests.support import Environment, data_files, llama_shapes, random_tensors, run_json, save_checkpoint

Pair = tuple[Path, Path]
MATRICES = 8 * 7  # of the large pair: its projections, in eight of its nine blocks


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
                stack.callback(subprocess.run, ["umount", str(folder)], check=True)
            return folder

        yield mount
