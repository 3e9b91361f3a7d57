"""A candidate is known before it is made: its trials are found by the id that its model is going to have."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from impart_core import tinyzoo
from impart_core.artifacts.study import study_recipe
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


@pytest.mark.parametrize("kind", ["compress", "merge"])
def test_other_files_beside_the_weights_are_another_study(kind: str, tmp_path: Path) -> None:
    other = tmp_path / "math"
    shutil.copytree(PLACES["finetuned"], other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 10.0}))
    files = [
        search(cr={"choose": [16]}, finetuned=place) if kind == "compress" else merges([place, PLACES["base"]])
        for place in (PLACES["finetuned"], str(other))
    ]
    with ThreadExecutor(1) as executor:
        templates = [open_template(file, Store(tmp_path / "store"), executor) for file in files]
    ids = {
        study_recipe(file, template.settings, template.contents).id
        for file, template in zip(files, templates, strict=True)
    }
    assert len(ids) == 2


def merges(places: list[str], own: dict[str, Any] | None = None) -> SearchFile:
    """Return a search of merges of models, the base last."""
    *models, base = places
    template = {
        "merge_method": "task_arithmetic",
        "base_model": base,
        "models": [{"model": place} for place in models],
        "parameters": {"weight": {"choose": [0.5, 1.0]}},
        "impart": own or {},
    }
    return parse_search({"merge": template, "tasks": ["tinyzoo_math"], "budget": {"trials": 1}})


def test_bytes_of_merges_count_models_that_are_not_sparsified(tmp_path: Path) -> None:
    code, store, run = str(tinyzoo.path("code")), Store(tmp_path / "store"), Run(str(tmp_path / "store"), device="cpu")
    math, base = PLACES["finetuned"], PLACES["base"]
    config = {"method": "magnitude", "cr": 8}
    found = []
    for own in ({}, {"models": {math: {"sparsify": config}}}, {"sparsify": config}):
        file = merges([math, code, base], own)
        with ThreadExecutor(1) as executor:
            template = open_template(file, store, executor)
        filled = file.space.fill(file.space.defaults).filled
        with template.model_of(filled, run):
            found.append(template.bytes_of(template.inputs(filled), store) or 0)
    assert found == sorted(found, reverse=True)
    assert found[2] < found[1] / 3 < found[0] / 3


def test_the_order_of_the_holes_is_part_of_a_study(tmp_path: Path) -> None:
    holes = {"cr": {"choose": [8, 16]}, "method": {"choose": ["impart", "dare"]}}
    files = [search(**holes), search(**dict(reversed(holes.items())))]
    with ThreadExecutor(1) as executor:
        templates = [open_template(file, Store(tmp_path / "store"), executor) for file in files]
    ids = {study_recipe(file, one.settings, one.contents).id for file, one in zip(files, templates, strict=True)}
    assert len(ids) == 2


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
