"""Base and fine-tune given twice or the wrong way round, and deltas with nothing in them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from impart_core.base.errors import ConfigError
from impart_core.checkpoint.index import open_checkpoint
from impart_core.checkpoint.sides import swapped
from impart_core.engine.compress import compress
from impart_core.engine.executor import ThreadExecutor
from impart_core.engine.preflight import open_sides
from impart_core.engine.requests import CompressRequest
from tests.impart_core.pipeline import config_of
from tests.support import llama_shapes, random_tensors, save_checkpoint

TENSORS = random_tensors(llama_shapes(layers=1))


def as_it_is(folder: Path) -> Path:
    return folder


def through_a_link(folder: Path) -> Path:
    (folder.parent / "link").symlink_to(folder)
    return folder.parent / "link"


@pytest.mark.parametrize("again", [as_it_is, through_a_link])
def test_one_checkpoint_given_as_both_is_refused(again: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "model", TENSORS)
    with pytest.raises(ConfigError, match="is given as the base and as the fine-tuned checkpoint"):
        open_sides(str(folder), str(again(folder)))


def test_a_copy_of_the_base_gives_an_empty_delta_and_that_is_said(tmp_path: Path) -> None:
    base = save_checkpoint(tmp_path / "base", TENSORS)
    shutil.copytree(base, tmp_path / "finetuned")
    request = CompressRequest(
        base=str(base), finetuned=str(tmp_path / "finetuned"), config=config_of(4), store=str(tmp_path / "store")
    )
    for _ in range(2):  # made, and found
        with ThreadExecutor(1) as executor:
            report = compress(request, executor).report
        assert "Every tensor of the fine-tuned checkpoint is the same as in the base" in report.notes[-1]


CARD = "---\nlicense: mit\nbase_model: {}\ntags:\n- x\n---\n# A model\nbase_model: other\n"
LIST = "---\nbase_model:\n- {}\n---\n"


def called(*names: str) -> Callable[[Path], tuple[Path, Path]]:
    def make(root: Path) -> tuple[Path, Path]:
        first, second = (save_checkpoint(root / str(n) / name, TENSORS) for n, name in enumerate(names))
        return first, second

    return make


def with_card(text: str, side: int) -> Callable[[Path], tuple[Path, Path]]:
    def make(root: Path) -> tuple[Path, Path]:
        folders = called("tuned", "original")(root)
        (folders[side] / "README.md").write_text(text)
        return folders

    return make


def with_a_path_in_its_configuration(root: Path) -> tuple[Path, Path]:
    folders = called("tuned", "original")(root)
    config = json.loads((folders[0] / "config.json").read_text())
    (folders[0] / "config.json").write_text(json.dumps({**config, "_name_or_path": "/models/Original/"}))
    return folders


def in_the_hubs_cache(root: Path) -> tuple[Path, Path]:
    return called(*(f"models--org--{name}/snapshots/{'0' * 40}" for name in ("Qwen-7B-Chat", "Qwen-7B")))(root)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (with_card(CARD.format("org/original"), 0), "its own base is 'original'"),
        (with_card(CARD.format("'Org/Original'"), 0), "its own base is 'original'"),
        (with_card(LIST.format("org/original"), 0), "its own base is 'original'"),
        (with_a_path_in_its_configuration, "its own base is 'original'"),
        (called("Qwen2-7B-Instruct", "Qwen2-7B"), "with '-instruct' after it"),
        (in_the_hubs_cache, "with '-chat' after it"),
    ],
)
def test_a_card_a_configuration_or_a_name_tells_that_they_are_swapped(
    make: Callable[[Path], tuple[Path, Path]], why: str, tmp_path: Path
) -> None:
    base, finetuned = (open_checkpoint(folder) for folder in make(tmp_path))
    (note,) = swapped(base, finetuned)
    assert note.startswith("Base and fine-tuned checkpoint seem to be the wrong way round: ")
    assert why in note
    assert swapped(finetuned, base) == ()


@pytest.mark.parametrize(
    "make",
    [
        called("original", "tuned"),
        called("Qwen2-7B", "Qwen2-7B-Instruct"),
        called("Qwen2-7B-Instruct", "Qwen2"),
        with_card(CARD.format("org/original-2"), 0),
        with_card(CARD.format("org/tuned"), 1),
        with_card("no front matter\nbase_model: original\n", 0),
        with_card("---\n\xff", 0),
    ],
)
def test_otherwise_nothing_is_said(make: Callable[[Path], tuple[Path, Path]], tmp_path: Path) -> None:
    assert swapped(*(open_checkpoint(folder) for folder in make(tmp_path))) == ()
