import json
import shutil
from pathlib import Path

import pytest
import yaml

from impart_core import tinyzoo
from impart_core.base.errors import CheckpointError, ConfigError
from impart_core.zoo.file import ZooModel, parse_zoo
from impart_core.zoo.initial import initial_zoo


def models_of(text: str) -> dict[str, tuple[str, str]]:
    """Return base and place of each model of a file's text, which has to be one that is taken."""
    found = parse_zoo(yaml.safe_load(text)).models
    return {one.name: (one.base, one.finetuned) for one in found if isinstance(one, ZooModel)}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder of a base, a fine-tune that names it in its card, and an adapter that names another."""
    for name in ("base", "math"):
        shutil.copytree(tinyzoo.path(name), tmp_path / name)
    (tmp_path / "math" / "README.md").write_text("---\nbase_model:\n  - org/base\n---\n")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/other"}))
    return tmp_path


def test_models_and_what_they_say_of_their_bases(models: Path) -> None:
    assert models_of(initial_zoo(str(models))) == {
        "lora": ("org/other", f"{models}/lora"),
        "math": (f"{models}/base", f"{models}/math"),  # the base that lies beside it
    }


def test_one_base_for_all(models: Path) -> None:
    found = models_of(initial_zoo(str(models), base=f"{models}/base"))
    assert found == {name: (f"{models}/base", f"{models}/{name}") for name in ("lora", "math")}


def test_what_says_nothing_is_asked_for(models: Path) -> None:
    shutil.copytree(tinyzoo.path("code"), models / "code")
    with pytest.raises(ConfigError, match=r"1 of 3 models do not say .*'code'.*--base"):
        initial_zoo(str(models))


def test_a_place_without_models(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No model lies at"):
        initial_zoo(str(tmp_path))
    with pytest.raises(CheckpointError, match="nowhere, which is no folder"):
        initial_zoo(str(tmp_path / "nowhere"))
