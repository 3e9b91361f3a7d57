"""A candidate is known before it is made: its trials are found by the id that its model is going to have."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from impart_core import tinyzoo
from impart_core.base.errors import ConfigError
from impart_core.engine.executor import ThreadExecutor
from impart_core.engine.references import Run
from impart_core.engine.templates import open_template
from impart_core.searching.file import SearchFile, parse_search
from impart_core.store.store import Store

PLACES = {"base": str(tinyzoo.path("base")), "finetuned": str(tinyzoo.path("math"))}


def search(**template: Any) -> SearchFile:
    return parse_search({"compress": {**PLACES, **template}, "tasks": ["tinyzoo_math"], "budget": {"trials": 1}})


@pytest.mark.parametrize(
    "template",
    [
        {"method": {"choose": ["impart", "lowrank"]}, "cr": 16},
        pytest.param(
            {"method": "impart-qt", "cr": {"choose": [64]}, "calibration": "tinyzoo:math"}, marks=pytest.mark.slow
        ),
        pytest.param({"method": {"choose": ["dare"]}, "cr": 8, "calibration": "tinyzoo:math"}, marks=pytest.mark.slow),
    ],
)
def test_the_id_that_is_foretold_is_that_of_the_delta(template: dict[str, Any], tmp_path: Path) -> None:
    store, run = Store(tmp_path), Run(str(tmp_path), device="cpu")
    file = search(**template)
    with ThreadExecutor(1) as executor:
        opened = open_template(file, store, executor)
    filled = file.space.fill(file.space.defaults).filled
    inputs = opened.inputs(filled)
    assert opened.bytes_of(inputs, store) is None
    with opened.model_of(filled, run) as model:
        assert inputs == {"delta": model.delta}
    assert (opened.bytes_of(inputs, store) or 0) > 10_000
    with opened.model_of(filled, run) as again:
        assert again == model


def test_models_at_other_places_are_the_same(tmp_path: Path) -> None:
    moved = {name: str(shutil.copytree(place, tmp_path / name)) for name, place in PLACES.items()}
    with ThreadExecutor(1) as executor:
        templates = [
            open_template(search(cr={"choose": [16]}, **places), Store(tmp_path / "store"), executor)
            for places in (PLACES, moved)
        ]
    assert templates[0].contents == templates[1].contents
    assert templates[0].settings == templates[1].settings == {"cr": {"choose": [16]}}
    filled = {"compress": {**PLACES, "cr": 16}}
    assert templates[0].inputs(filled) == templates[1].inputs(filled)


@pytest.mark.parametrize(
    ("places", "why"),
    [
        ({"base": {"choose": ["a", "b"]}}, "compress.base is .* no hole"),
        ({"finetuned": 3}, "compress.finetuned is 3"),
        ({"finetuned": PLACES["base"]}, "as the base and as the fine-tuned"),
    ],
)
def test_what_cannot_be_opened_is_said(places: dict[str, Any], why: str, tmp_path: Path) -> None:
    with ThreadExecutor(1) as executor, pytest.raises(ConfigError, match=why):
        open_template(search(cr={"choose": [16]}, **places), Store(tmp_path), executor)
