"""Ids: every input, setting, seed and version is part of them; how and where it is run is not."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import impart_core.artifacts.delta as delta_module
import impart_core.artifacts.evaluation as evaluation_module
import impart_core.artifacts.factors as factors_module
from flows.compress import CompressRequest
from flows.jobs import plan_jobs
from impart_core.artifacts.delta import delta_recipe
from impart_core.artifacts.evaluation import evaluation_recipe
from impart_core.artifacts.identity import Recipe
from impart_core.checkpoint.digest import tensor_digests
from impart_core.checkpoint.index import open_checkpoint
from impart_core.config import CompressConfig, build_config
from impart_core.plan import check_request
from impart_core.policy import calibration_of
from impart_core.sparsify import SPARSIFIERS
from tasks.references import Trust
from tests.impart_core.pipeline import small_options

Pair = tuple[Path, Path]
Digests = tuple[dict[str, str], dict[str, str]]
LAYER, REST = "model.layers.0", "outside"


@pytest.fixture(scope="module")
def pair(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The same pair, whose configurations say how many layers there are."""
    root = tmp_path_factory.mktemp("layers")
    found = [Path(shutil.copytree(folder, root / folder.name)) for folder in pair]
    for folder in found:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    return found[0], found[1]


@pytest.fixture
def request_(pair: Pair, tmp_path: Path) -> CompressRequest:
    config = build_config(CompressConfig, cr=4.0)
    return CompressRequest(base=str(pair[0]), finetuned=str(pair[1]), config=config, store=str(tmp_path / "store"))


def with_config(request: CompressRequest, **settings: Any) -> CompressRequest:
    """Return the request with other settings."""
    return request.model_copy(update={"config": build_config(CompressConfig, **{"cr": 4.0, **settings})})


def digests_of(request: CompressRequest) -> Digests:
    return tensor_digests(open_checkpoint(request.base)), tensor_digests(open_checkpoint(request.finetuned))


def ids(request: CompressRequest, digests: Digests | None = None, text: str = "text") -> dict[str, str]:
    """Return the ids of all that a request makes: of each block, of its factors and scales, and of the delta.

    Methods that need calibration text are given the one of this id.
    """
    base, finetuned = open_checkpoint(request.base), open_checkpoint(request.finetuned)
    work, digests = check_request(base, finetuned, request.config), digests or digests_of(request)
    words = None if calibration_of(request.config) == "none" else text
    places = {name: getattr(request, name) for name in ("base", "finetuned", "store", "device", "trust")}
    made: dict[str, Recipe | None] = {"delta": delta_recipe(base, finetuned, request.config, digests, words)}
    for job in plan_jobs(request.config, work, finetuned, digests, words, places).jobs:
        name = job.block.name
        made |= {name: job.recipe, f"factors of {name}": job.factors, f"scales of {name}": job.scales}
    return {name: recipe.id for name, recipe in made.items() if recipe}


def changed(one: dict[str, str], other: dict[str, str]) -> set[str]:
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


CODES = {"delta", LAYER, "model.layers.1"}
BLOCKS = (LAYER, "model.layers.1", REST)
FACTORS = {f"factors of {LAYER}", "factors of model.layers.1"}
# Another value of each setting, and what it changes at the least.
SETTINGS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "method": ({"method": "lowrank"}, CODES),
    "cr": ({"cr": 5.0}, CODES),
    "seed": ({"seed": 1}, CODES),
    "accounting": ({"accounting": "paper"}, CODES),
    "options": ({"options": {"beta": 0.5}}, CODES),
    "factors_for": ({"factors_for": 2.0}, CODES | FACTORS),
    "embeddings": ({"embeddings": "auto"}, {"delta", REST}),
    "embeddings_cr": ({"embeddings": "auto", "embeddings_cr": 9.0}, {"delta", REST}),
}
QUANTIZE: dict[str, Any] = {"group_size": 64, "solver": "masked", "lossless": False, "fill": False}
OPTIONS: dict[str, dict[str, Any]] = {
    "impart": {"beta": 0.5, "c": 0.5, "preprune": False, "allocation": "uniform", "rescale": False},
    "impart-qt": {"beta": 0.5, "c": 0.7, "preprune": False, "allocation": "uniform", "rescale": False}
    | QUANTIZE
    | {"ladder": "8x4,2"},
    "delta-come": {**QUANTIZE, "ladder": "8x4,2"},
    "dare-qt": {**QUANTIZE, "bits": 2},
    "bitdelta": {"per_row": True, "distil": True},
    "dare": {},
    "lowrank": {},
    "magnitude": {},
}


def test_the_tables_hold_every_setting_of_every_method() -> None:
    assert set(SETTINGS) == set(CompressConfig.model_fields)
    assert set(OPTIONS) == set(SPARSIFIERS)
    for method, values in OPTIONS.items():
        fields = SPARSIFIERS.get(method).options_model.model_fields
        assert set(values) == set(fields)
        assert all(value != fields[name].default for name, value in values.items())


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_part_of_the_ids(name: str, request_: CompressRequest) -> None:
    settings, expected = SETTINGS[name]
    before = {"embeddings": "auto"} if name == "embeddings_cr" else {}
    assert expected <= changed(ids(with_config(request_, **before)), ids(with_config(request_, **settings)))


@pytest.mark.parametrize(("method", "name"), [(method, name) for method, values in OPTIONS.items() for name in values])
def test_every_option_of_a_method_is_part_of_the_ids(method: str, name: str, request_: CompressRequest) -> None:
    usual = with_config(request_, method=method, options=small_options(method))
    other = with_config(request_, method=method, options={**small_options(method), name: OPTIONS[method][name]})
    found = changed(ids(usual), ids(other))
    # Where scales are distilled, they are for all blocks.
    allowed = CODES | FACTORS | ({REST} | {f"scales of {block}" for block in BLOCKS} if name == "distil" else set())
    assert CODES <= found <= allowed


@pytest.mark.parametrize("side", [0, 1])
def test_every_tensor_of_both_checkpoints_is_part_of_the_ids(side: int, request_: CompressRequest) -> None:
    digests = digests_of(request_)
    before = ids(request_)
    for name in digests[side]:
        sides = list(digests)
        sides[side] = {**digests[side], name: "0" * 64}
        assert "delta" in changed(before, ids(request_, (sides[0], sides[1])))
        assert len(changed(before, ids(request_, (sides[0], sides[1])))) >= 2


@pytest.mark.parametrize("side", ["base", "finetuned"])
def test_every_carried_file_is_part_of_the_deltas_id(side: str, request_: CompressRequest, tmp_path: Path) -> None:
    copied = shutil.copytree(getattr(request_, side), tmp_path / "copy")
    other = request_.model_copy(update={side: str(copied)})
    assert changed(ids(request_), ids(other)) == set()
    (copied / "tokenizer.json").write_text("{}")
    assert changed(ids(request_), ids(other)) == {"delta"}


def test_which_checkpoint_is_which_is_part_of_the_ids(request_: CompressRequest) -> None:
    turned = request_.model_copy(update={"base": request_.finetuned, "finetuned": request_.base})
    assert changed(ids(request_), ids(turned)) >= CODES | FACTORS


@pytest.mark.parametrize(
    ("module", "version", "expected"),
    [
        (delta_module, "_BLOCK_VERSION", {LAYER, "model.layers.1", REST}),
        (delta_module, "_DELTA_VERSION", {"delta"}),
        (delta_module, "FORMAT_VERSION", CODES | {REST}),
        (factors_module, "_VERSION", FACTORS | {LAYER, "model.layers.1"}),
    ],
)
def test_every_operations_version_is_part_of_the_ids(
    module: Any, version: str, expected: set[str], request_: CompressRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = ids(request_)
    monkeypatch.setattr(module, version, getattr(module, version) + 1)
    assert changed(before, ids(request_)) == expected


@pytest.mark.parametrize("method", list(SPARSIFIERS))
def test_every_methods_version_is_part_of_the_ids(
    method: str, request_: CompressRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = with_config(request_, method=method, options=small_options(method))
    before = ids(usual)
    monkeypatch.setattr(SPARSIFIERS.get(method), "version", 1000)
    assert changed(before, ids(usual)) == CODES


CALIBRATED: list[tuple[str, dict[str, Any]]] = [
    *((method, small_options(method)) for method in ("impart-qt", "delta-come", "dare-qt")),
    ("bitdelta", {"distil": True}),
]


@pytest.mark.parametrize(("method", "options"), CALIBRATED)
def test_calibration_text_is_part_of_the_ids_of_what_it_decides(
    method: str, options: dict[str, Any], request_: CompressRequest
) -> None:
    usual = with_config(request_, method=method, options=options)
    found = changed(ids(usual), ids(usual, text="another text"))
    assert {name for name in found if not name.startswith("scales")} >= CODES
    assert not found & FACTORS


@pytest.mark.parametrize("method", ["impart-qt", "delta-come", "dare-qt"])
def test_a_layer_depends_on_those_before_it_and_none_does_where_values_are_rounded_to_the_nearest(
    method: str, request_: CompressRequest
) -> None:
    digests = digests_of(request_)
    first = next(name for name in sorted(digests[1]) if name.startswith(LAYER) and "proj" in name)
    other = (digests[0], {**digests[1], first: "0" * 64})
    for solver, expected in (("support", CODES), ("nearest", {"delta", LAYER})):
        usual = with_config(request_, method=method, options={**small_options(method), "solver": solver})
        found = changed(ids(usual, digests), ids(usual, other))
        assert {name for name in found if not name.startswith("factors")} == expected


# Another value of all else that a request holds; `config` and the checkpoints' content are above.
REST_OF_REQUEST = {
    "store": "elsewhere",
    "name": "named@prod",
    "device": "cpu",
    "workers": 7,
    "keep_factors": False,
    "trust": Trust(reread=True, refresh_from="digest"),
}


def test_the_table_holds_all_else_of_a_request() -> None:
    assert set(REST_OF_REQUEST) | {"base", "finetuned", "config", "calibration"} == set(CompressRequest.model_fields)


@pytest.mark.parametrize("name", REST_OF_REQUEST)
def test_how_it_is_run_is_no_part_of_the_ids(
    name: str, request_: CompressRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = ids(request_)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "DEBUG")
    other = request_.model_copy(update={name: REST_OF_REQUEST[name]})
    assert getattr(other, name) != getattr(request_, name)
    assert ids(other) == before


def test_where_checkpoints_lie_is_no_part_of_the_ids(request_: CompressRequest, tmp_path: Path) -> None:
    places = {side: str(shutil.copytree(getattr(request_, side), tmp_path / side)) for side in ("base", "finetuned")}
    assert ids(request_.model_copy(update=places)) == ids(request_)


def test_all_that_decides_an_evaluation_is_part_of_its_id(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    base, finetuned = map(open_checkpoint, pair)
    usual = {"model": base, "task": "tinyzoo_math", "split": "test", "limit": None, "seed": 0}
    others = {"model": finetuned, "task": "tinyzoo_code", "split": "validation", "limit": 4, "seed": 1}
    before = evaluation_recipe(**usual).id  # type: ignore[arg-type]
    for name, value in others.items():
        assert evaluation_recipe(**{**usual, name: value}).id != before  # type: ignore[arg-type]
    monkeypatch.setattr(evaluation_module, "_VERSION", 2)
    assert evaluation_recipe(**usual).id != before  # type: ignore[arg-type]
    monkeypatch.undo()
    monkeypatch.setattr(evaluation_module, "task_fingerprint", lambda names: dict.fromkeys(names, "0" * 64))
    assert evaluation_recipe(**usual).id != before  # type: ignore[arg-type]


def test_who_made_it_when_and_how_is_no_part_of_an_id() -> None:
    assert set(Recipe.model_fields) == {"operation", "version", "config", "inputs"}
