import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from impart_core import tinyzoo
from impart_core.base.errors import CheckpointError
from impart_core.checkpoint.listing import find_models, listing_digest


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model with a folder of files beside its weights."""
    folder = shutil.copytree(tinyzoo.path("math"), tmp_path / "math")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    return folder


def rewrite(path: Path) -> None:
    """Write other bytes of the same number, with the same modification time."""
    before, data = path.stat(), path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: rewrite(folder / "model.safetensors"),
        lambda folder: rewrite(folder / "1_Pooling" / "config.json"),
        lambda folder: (folder / "1_Pooling" / "config.json").unlink(),
        lambda folder: (folder / "chat_template.jinja").write_text("x"),
    ],
)
def test_a_change_of_any_file_changes_the_digest(model: Path, change: Callable[[Path], object]) -> None:
    before = listing_digest(str(model))
    assert before is not None
    assert listing_digest(str(model)) == before
    change(model)
    assert listing_digest(str(model)) != before


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        listing_digest(str(tmp_path / "none"))


def test_models_are_found_by_a_pattern(model: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "notes").mkdir()
    (tmp_path / "file").write_text("")
    assert find_models(f"{tmp_path}/*") == {"adapter": str(tmp_path / "adapter"), "math": str(model)}
    assert find_models(f"{tmp_path}/ma*") == {"math": str(model)}
    assert find_models(f"{tmp_path}/none*") == {}
    with pytest.raises(CheckpointError, match=r"in .*nowhere, which is no folder\. Give the folder that holds the"):
        find_models(f"{tmp_path}/nowhere/*")
