"""A candidate is known before it is made: its trials are found by the id that its model is going to have."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import impart_core as impart
from impart_core import tinyzoo
from impart_core.artifacts.calibration_text import calibration_recipe, publish_calibration
from impart_core.artifacts.delta import file_bytes, open_delta
from impart_core.artifacts.study import study_recipe
from impart_core.base.errors import CalibrationError, CheckpointError, ConfigError, WrongBaseError
from impart_core.checkpoint.index import open_checkpoint
from impart_core.engine.executor import ThreadExecutor
from impart_core.engine.references import Run
from impart_core.engine.template import Model, Template
from impart_core.engine.templates import open_template
from impart_core.merging.file import ModelReference
from impart_core.searching.file import SearchFile, parse_search
from impart_core.store.names import resolve, set_ref
from impart_core.store.provenance import Stopwatch
from impart_core.store.store import Store
from tests.odd_values import tracebacks

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
    made = [str(inputs["delta"])]
    assert opened.bytes_of(filled, made, store) is None
    with opened.model_of(filled, run) as model:
        assert inputs == {"delta": model.delta}
    assert (opened.bytes_of(filled, made, store) or 0) > 10_000
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


def merges(places: list[str], own: dict[str, Any] | None = None, **more: Any) -> SearchFile:
    """Return a search of merges of models, the base last."""
    *models, base = places
    template = {
        "merge_method": "task_arithmetic",
        "base_model": base,
        "models": [{"model": place} for place in models],
        "parameters": {"weight": {"choose": [0.5, 1.0]}},
        "impart": own or {},
        **more,
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
        with template.model_of(filled, run) as model:
            assert template.inputs(filled) == model.inputs
            found.append(template.bytes_of(filled, model.parents, store) or 0)
    assert found == sorted(found, reverse=True)
    assert found[2] < found[1] / 3 < found[0] / 3


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with a delta called `math@low`."""
    place = Store(str(tmp_path_factory.mktemp("templates") / "store"))
    impart.compress(*PLACES.values(), 8, store=place, name="math@low", method="magnitude", keep_factors=False)
    return place


def opened(file: SearchFile, store: Store) -> Template:
    """Open a search's template."""
    with ThreadExecutor(1) as executor:
        return open_template(file, store, executor)


def default_of(file: SearchFile) -> Mapping[str, Any]:
    """Return the default candidate."""
    return file.space.fill(file.space.defaults).filled


def test_a_merge_with_a_delta_is_known_by_the_deltas_id(store: Store) -> None:
    run, delta = Run(store.url, device="cpu"), open_delta(store, resolve(store, "math@low"))
    file = merges(["math@low", str(tinyzoo.path("code")), PLACES["base"]])
    template, filled = opened(file, store), default_of(file)
    template.check(filled, run)
    assert template.contents["model 1"] == delta.id
    assert template.experts == {
        "math@low": Model(delta=delta.id, base=template.base),
        "code": Model(checkpoint=open_checkpoint(tinyzoo.path("code"))),
    }
    with template.model_of(filled, run) as model:
        assert (model.inputs, model.parents) == (template.inputs(filled), (delta.id,))
    assert (
        template.bytes_of(filled, [delta.id], store)
        == file_bytes(store, delta.id)
        + template.models[  # type: ignore
            ModelReference.model_validate(str(tinyzoo.path("code")))
        ].nbytes
    )


def test_a_delta_is_the_same_by_its_name_and_by_its_id_and_another_where_the_name_has_moved(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    first, second = (
        impart.compress(*PLACES.values(), cr, store=store, method="magnitude", keep_factors=False).id for cr in (8, 16)
    )
    set_ref(store, "math", first)
    named, by_id = merges(["math", PLACES["base"]]), merges([first, PLACES["base"]])
    before = opened(named, store)
    assert before.contents == opened(by_id, store).contents
    assert before.settings == opened(by_id, store).settings
    assert before.inputs(default_of(named)) == opened(by_id, store).inputs(default_of(by_id))
    set_ref(store, "math", second)
    after = opened(named, store)
    assert after.contents != before.contents
    assert after.inputs(default_of(named)) != before.inputs(default_of(named))


def test_a_merge_that_is_compressed_is_scored_and_published_as_its_delta(store: Store) -> None:
    run = Run(store.url, device="cpu")
    config = {"method": "magnitude", "cr": {"choose": [16, 4]}}
    file = merges(["math@low", str(tinyzoo.path("code")), PLACES["base"]], {"compress": config})
    template, found = opened(file, store), []
    for cr in (16, 4):
        filled = file.space.fill({**file.space.defaults, "impart.compress.cr": cr}).filled
        template.check(filled, run)
        with template.model_of(filled, run) as model:
            assert model.delta is not None and model.inputs == template.inputs(filled)
            assert template.bytes_of(filled, [model.delta, *model.parents], store) == file_bytes(store, model.delta)
            found.append((model.inputs, file_bytes(store, model.delta) or 0))
        assert template.publish(filled, run) == model.delta
    assert found[0][0] != found[1][0]
    assert found[0][1] < found[1][1] / 2


def test_no_place_is_part_of_a_study_of_merges(store: Store, tmp_path: Path) -> None:
    moved = shutil.copytree(PLACES["finetuned"], tmp_path / "moved")
    settings = []
    for place in (PLACES["finetuned"], str(moved)):
        own = {"models": {place: {"sparsify": {"cr": 8}}, "code": {"ref": "math@low"}}}
        file = merges([place, "code", PLACES["base"]], own, tokenizer_source=place)
        settings.append(opened(file, store).settings)
    assert settings[0] == settings[1]
    assert str(PLACES["finetuned"]) not in json.dumps(settings)


CODE = str(tinyzoo.path("code"))
LISTED = [{"model": PLACES["finetuned"]}]


@pytest.mark.parametrize(
    ("template", "kind", "why"),
    [
        ({"models": {"choose": [LISTED, [*LISTED, {"model": CODE}]]}}, ConfigError, "A candidate merges .*code"),
        (
            {"base_model": {"choose": [PLACES["base"], CODE]}},
            ConfigError,
            "base_model: the place of a model is no hole",
        ),
        ({"base_model": "math@low"}, ConfigError, "a delta. Give the checkpoint"),
        ({"base_model": CODE, "models": [{"model": "math@low"}]}, WrongBaseError, "made against another base"),
        (
            {"models": [{"model": "x"}], "impart": {"models": {"x": {"ref": {"choose": ["math@low", "y"]}}}}},
            ConfigError,
            "A candidate merges x, .* does otherwise",
        ),
        ({"impart": {"name": "x"}}, ConfigError, "leave out name"),
        ({"models": [{"model": "math@hihg"}]}, CheckpointError, "no delta has this name"),
    ],
)
def test_models_of_a_search_that_cannot_be_merged_are_told(
    template: dict[str, Any], kind: type[Exception], why: str, store: Store
) -> None:
    written = {"merge_method": "task_arithmetic", "base_model": PLACES["base"], "models": LISTED, **template}
    written["parameters"] = {"weight": {"choose": [0.5, 1.0]}}
    file = parse_search({"merge": written, "tasks": ["tinyzoo_math"], "budget": {"trials": 1}})
    with pytest.raises(kind, match=why):
        opened(file, store)


@pytest.mark.parametrize("place", ["sparsify", "compress"])
def test_a_calibrated_method_in_a_merge_is_told_before_any_work(place: str, store: Store) -> None:
    models = [{"model": PLACES["finetuned"], "parameters": {"weight": {"range": [0, 1]}}}]
    written = {"merge_method": "task_arithmetic", "base_model": PLACES["base"], "models": models}
    written["impart"] = {place: {"method": "impart-qt", "cr": 16}}
    file = parse_search({"merge": written, "tasks": ["tinyzoo_math"], "budget": {"trials": 1}})
    with pytest.raises(ConfigError, match="calibrat"):
        opened(file, store).check(default_of(file), Run(store.url, device="cpu"))


def test_stored_text_that_is_too_long_for_the_model_is_told_before_any_candidate(store: Store) -> None:
    tokens = torch.ones(2, 640, dtype=torch.int32)
    text = publish_calibration(store, calibration_recipe(tokens), tokens, Stopwatch())
    file = search(method={"choose": ["dare"]}, options={"distil": True}, cr=8, calibration=f"artifact:{text.id}")
    with pytest.raises(CalibrationError, match=r"of 640 tokens are asked for, and .* takes 256 at most"):
        opened(file, store)


def test_a_delta_is_not_sparsified_by_a_candidate(store: Store) -> None:
    file = merges(["math@low", PLACES["base"]], {"sparsify": {"choose": [None, {"cr": 8}]}})
    template = opened(file, store)
    bad = file.space.fill({**file.space.defaults, "impart.sparsify": {"cr": 8}}).filled
    with pytest.raises(ConfigError, match="math@low is a delta, and cannot be sparsified"):
        template.inputs(bad)


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


def test_whatever_is_written_in_a_template_gives_a_sentence(store: Store) -> None:
    run = Run(store.url, device="cpu")
    template = {
        "merge_method": "ties",
        "base_model": PLACES["base"],
        "models": [{"model": "math@low", "parameters": {"weight": 1, "density": {"range": [0.1, 1]}}}, {"model": CODE}],
        "parameters": {"weight": 0.5},
        "tokenizer": {"source": "union", "tokens": {"a": {"source": CODE}}},
        "impart": {"models": {CODE: {"sparsify": {"cr": 8, "method": "dare"}}}, "compress": {"cr": 4}},
    }

    def read(raw: Any) -> None:
        file = parse_search({"tasks": {"tinyzoo_math": "exact_match"}, "budget": {"trials": 3}, "merge": raw})
        found, filled = opened(file, store), default_of(file)
        assert found.inputs(filled)
        found.check(filled, run)

    read(template)
    assert tracebacks(template, read) == []
