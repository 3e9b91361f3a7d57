"""Ids: every input, setting, seed and version is part of them; how and where it is run is not."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from impart_core import tinyzoo
from impart_core.artifacts import activations, block, calibration_text, delta, evaluation, factors, scales, sensitivity
from impart_core.artifacts.calibration_text import calibration_recipe
from impart_core.artifacts.delta import delta_recipe
from impart_core.artifacts.evaluation import evaluation_recipe
from impart_core.base.settings import MethodOptions
from impart_core.blocks import coding
from impart_core.blocks.coding import calibration_of, needs_text
from impart_core.blocks.request import CompressConfig
from impart_core.calibrate.text import CalibrationText, read_tokens
from impart_core.checkpoint.digest import tensor_digests
from impart_core.checkpoint.index import open_checkpoint
from impart_core.engine.jobs import Planned, plan_jobs
from impart_core.engine.preflight import check_compress
from impart_core.engine.references import Run
from impart_core.engine.requests import CompressRequest, Trust
from impart_core.evaluation.options import MeasureOptions
from impart_core.methods import METHODS
from impart_core.store.recipe import Recipe

Pair = tuple[Path, Path]
Digests = tuple[dict[str, str], dict[str, str]]
LAYER, REST = "model.layers.0", "outside"
CALIBRATED = ("bitdelta", "dare-qt", "delta-come", "impart-qt")  # with their usual settings, or with others
TEXT = CalibrationText(source="tinyzoo:math", sequences=2, length=16)


@pytest.fixture
def request_(pair: Pair, tmp_path: Path) -> CompressRequest:
    config = CompressConfig(cr=4.0)
    return CompressRequest(base=str(pair[0]), finetuned=str(pair[1]), config=config, store=str(tmp_path / "store"))


@pytest.fixture
def zoo_request(tmp_path: Path) -> CompressRequest:
    """A request on a model that can be run, for methods that are calibrated."""
    base, finetuned = (str(tinyzoo.path(name)) for name in ("base", "math"))
    config = CompressConfig(cr=32.0, method="impart-qt")
    store = str(tmp_path / "store")
    return CompressRequest(base=base, finetuned=finetuned, config=config, store=store, calibration=TEXT)


def with_config(request: CompressRequest, **settings: Any) -> CompressRequest:
    """Return the request with other settings, and with calibration text where these need some."""
    config = CompressConfig(**{"cr": request.config.cr, **settings})
    text = (request.calibration or TEXT) if needs_text(config) else None
    return request.model_copy(update={"config": config, "calibration": text})


def digests_of(request: CompressRequest) -> Digests:
    return tensor_digests(open_checkpoint(request.base)), tensor_digests(open_checkpoint(request.finetuned))


def ids(request: CompressRequest, digests: Digests | None = None) -> dict[str, str]:
    """Return the ids of all that a request makes: of each block, of its factors, and of the delta."""
    checked = check_compress(request)
    base, finetuned = checked.base, checked.finetuned
    digests = digests or digests_of(request)
    text = calibration_recipe(read_tokens(request.calibration, finetuned)) if request.calibration else None
    words = text.id if text else None
    planned = plan_jobs(checked, digests, words, Run(request.store, trust=request.trust))
    made = {"text": text, "delta": delta_recipe(base, finetuned, request.config, digests, words)}
    for job in (*planned.jobs, *planned.distilled):
        made |= {job.block.name: job.recipe, f"factors of {job.block.name}": job.factors}
    made["scales"] = planned.distil.recipe if planned.distil else None
    made |= {f"given {job.block.name}": activations_of(planned, number) for number, job in enumerate(planned.jobs)}
    return {name: recipe.id for name, recipe in made.items() if recipe}


def activations_of(planned: Planned, number: int) -> Recipe | None:
    """Return what makes the activations that a job is given, if it is given some."""
    layer = planned.layers.get(number)
    return layer.given if layer else None


def changed(one: dict[str, str], other: dict[str, str]) -> set[str]:
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


def chain(*numbers: int) -> set[str]:
    """Return the names of layers, and of what they are given by the ones before them."""
    return {f"{kind}model.layers.{number}" for number in numbers for kind in ("", "given ")}


CODES = {"delta", LAYER, "model.layers.1"}
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
OPTIONS: dict[str, dict[str, Any]] = {
    "impart": {"beta": 0.5, "c": 0.5, "preprune": False, "allocation": "uniform", "rescale": False, "floor": 0.3},
    "bitdelta": {"per_row": True},
    "dare": {},
    "dare-qt": {"bits": 2, "group_size": 64, "solver": "masked", "lossless": False, "fill": False},
    "delta-come": {"ladder": "3x8,2", "group_size": 64, "solver": "nearest", "lossless": False, "fill": False},
    "impart-qt": {
        **{"beta": 0.5, "c": 1.0, "preprune": False, "allocation": "uniform", "rescale": False},
        **{"ladder": "3x8,2", "group_size": 64, "solver": "nearest", "lossless": False, "fill": False},
    },
    "ecsq": {
        "filling": "one_step",
        "p": 0.5,
        "gain": 0.5,
        "domain": "factors",
        "metric": "kfac",
        "feedback": 0.25,
        "share_by": "entries",
    },
    "lowrank": {},
    "magnitude": {},
}


def test_the_tables_hold_every_setting_of_every_method() -> None:
    assert set(SETTINGS) == set(CompressConfig.model_fields)
    assert set(OPTIONS) == set(METHODS)
    for method, values in OPTIONS.items():
        fields = METHODS.get(method).options_model.model_fields
        assert set(values) == set(fields) - set(MethodOptions.model_fields)
        assert all(value != fields[name].default for name, value in values.items())


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_part_of_the_ids(name: str, request_: CompressRequest) -> None:
    settings, expected = SETTINGS[name]
    before = {"embeddings": "auto"} if name == "embeddings_cr" else {}
    assert expected <= changed(ids(with_config(request_, **before)), ids(with_config(request_, **settings)))


@pytest.mark.parametrize(("method", "name"), [(method, name) for method, values in OPTIONS.items() for name in values])
def test_every_option_of_a_method_is_part_of_the_ids(
    method: str, name: str, request_: CompressRequest, zoo_request: CompressRequest
) -> None:
    needed = {"floor": {"allocation": "proportional"}, "feedback": {"metric": "kfac"}}.get(name, {})
    request = zoo_request if method in CALIBRATED or "metric" in (name, *needed) else request_
    usual = with_config(request, method=method, options=needed)
    other = with_config(request, method=method, options={**needed, name: OPTIONS[method][name]})
    found = changed(ids(usual), ids(other))
    assert found >= CODES
    assert not found & {REST, f"given {LAYER}"} or name == "solver"  # then there is text, or there is none


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
    ("versions", "operation", "expected"),
    [
        (block.VERSIONS, "block", {LAYER, "model.layers.1", REST}),
        (delta.VERSIONS, "delta", {"delta"}),
        (factors.VERSIONS, "factors", FACTORS | {LAYER, "model.layers.1"}),
    ],
)
def test_every_operations_version_is_part_of_the_ids(
    versions: dict[str, int],
    operation: str,
    expected: set[str],
    request_: CompressRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = ids(request_)
    monkeypatch.setitem(versions, operation, versions[operation] + 1)
    assert changed(before, ids(request_)) == expected


def test_the_formats_version_is_part_of_the_ids(request_: CompressRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ids(request_)
    monkeypatch.setattr(coding, "FORMAT_VERSION", 1000)
    assert changed(before, ids(request_)) == CODES | {REST}


@pytest.mark.parametrize("method", list(METHODS))
def test_every_methods_version_is_part_of_the_ids(
    method: str, request_: CompressRequest, zoo_request: CompressRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = with_config(zoo_request if method in CALIBRATED else request_, method=method)
    before = ids(usual)
    monkeypatch.setattr(METHODS.get(method), "version", 1000)
    third = {"model.layers.2"} if method in CALIBRATED else set()
    given = chain(1, 2) if calibration_of(usual.config) == "inputs" else set()
    assert changed(before, ids(usual)) == CODES | third | given


@pytest.mark.parametrize("text", [{"source": "tinyzoo:code"}, {"sequences": 3}, {"length": 17}])
def test_calibration_text_is_part_of_the_ids_of_all_that_is_calibrated(
    text: dict[str, Any], zoo_request: CompressRequest
) -> None:
    other = zoo_request.model_copy(update={"calibration": TEXT.model_copy(update=text)})
    assert changed(ids(zoo_request), ids(other)) == {"text", "delta", *chain(0, 1, 2)}
    distilled, its = (with_config(one, method="bitdelta", options={"distil": True}) for one in (zoo_request, other))
    blocks = {f"model.layers.{number}" for number in range(3)}
    assert changed(ids(distilled), ids(its)) == {"text", "delta", "scales", *blocks}


def test_sensitivity_is_measured_on_the_text_and_its_version_is_part_of_the_ids(
    zoo_request: CompressRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = with_config(zoo_request, method="ecsq", options={"metric": "kfac"})
    before, layers = ids(usual), {f"model.layers.{number}" for number in range(3)}
    other = usual.model_copy(update={"calibration": TEXT.model_copy(update={"sequences": 3})})
    assert changed(before, ids(other)) == {"text", "delta", *layers}
    monkeypatch.setitem(sensitivity.VERSIONS, "sensitivity", 1000)
    assert changed(before, ids(usual)) == {"delta", *layers}


def test_where_the_same_tokens_come_from_is_no_part_of_the_ids(zoo_request: CompressRequest, tmp_path: Path) -> None:
    lines = [f"{word} 1 2 3 + 4" for word in "abcdefgh"]
    whole, folder = tmp_path / "whole.txt", tmp_path / "folder"
    folder.mkdir()
    longer = folder / "longer.txt"
    whole.write_text("\n".join(lines))
    longer.write_text("\n".join([*lines, "more than is read"]))
    one, other = (
        zoo_request.model_copy(update={"calibration": TEXT.model_copy(update={"source": str(path)})})
        for path in (whole, longer)
    )
    assert changed(ids(one), ids(other)) == set()
    assert "text" in changed(ids(one), ids(zoo_request))


@pytest.mark.parametrize("side", [0, 1])
def test_a_layer_depends_on_what_comes_before_it_and_on_nothing_after(side: int, zoo_request: CompressRequest) -> None:
    digests, before = digests_of(zoo_request), ids(zoo_request)

    def with_other(tensor: str) -> set[str]:
        sides = list(digests)
        sides[side] = {**digests[side], tensor: "0" * 64}
        found = changed(before, ids(zoo_request, (sides[0], sides[1])))
        return {name for name in found if not name.startswith("factors")}

    assert with_other("model.layers.1.mlp.up_proj.weight") == {"delta", "model.layers.1", *chain(2)}
    assert with_other("model.layers.2.mlp.up_proj.weight") == {"delta", "model.layers.2"}
    assert with_other("model.embed_tokens.weight") == {"delta", REST, *chain(0, 1, 2)}


def test_the_configuration_that_a_model_runs_by_is_part_of_the_ids_where_it_is_run(
    zoo_request: CompressRequest, tmp_path: Path
) -> None:
    copied = shutil.copytree(zoo_request.finetuned, tmp_path / "copy")
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    other = zoo_request.model_copy(update={"finetuned": str(copied)})
    assert changed(ids(zoo_request), ids(other)) == {"delta", *chain(0, 1, 2)}
    plain = [with_config(one, method="bitdelta") for one in (zoo_request, other)]
    assert changed(ids(plain[0]), ids(plain[1])) == {"delta"}


@pytest.mark.parametrize(
    ("versions", "operation", "expected"),
    [
        (calibration_text.VERSIONS, "calibration", {"text", "delta", *chain(0, 1, 2)}),
        (activations.VERSIONS, "activations", chain(0, 1, 2)),
    ],
)
def test_every_version_of_calibration_is_part_of_the_ids(
    versions: dict[str, int],
    operation: str,
    expected: set[str],
    zoo_request: CompressRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = ids(zoo_request)
    monkeypatch.setitem(versions, operation, versions[operation] + 1)
    assert changed(before, ids(zoo_request)) == expected


def test_the_size_of_batches_is_part_of_the_ids(zoo_request: CompressRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ids(zoo_request)
    monkeypatch.setattr(activations, "BATCH_TOKENS", 4096)
    assert changed(before, ids(zoo_request)) == chain(0, 1, 2)


def test_the_version_of_distillation_is_part_of_the_ids(
    zoo_request: CompressRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = with_config(zoo_request, method="bitdelta", options={"distil": True})
    before = ids(request)
    monkeypatch.setitem(scales.VERSIONS, "scales", 1000)
    assert changed(before, ids(request)) == {"scales", "delta", *(f"model.layers.{number}" for number in range(3))}


DISTILLATION: dict[str, Any] = {"distil_norms": True, "distil_steps": 7, "distil_rate": 0.5}


@pytest.mark.parametrize("method", ["dare", "bitdelta", "impart-qt"])
def test_how_gains_are_trained_is_part_of_the_ids_and_whether_at_all(method: str, zoo_request: CompressRequest) -> None:
    assert {"distil", *DISTILLATION} == set(MethodOptions.model_fields)
    layers = {f"model.layers.{number}" for number in range(3)}
    without, usual = (with_config(zoo_request, method=method, options={"distil": each}) for each in (False, True))
    assert changed(ids(without), ids(usual)) >= {"scales", "delta", *layers}
    assert REST not in changed(ids(without), ids(usual))
    for name, value in DISTILLATION.items():
        other = with_config(zoo_request, method=method, options={"distil": True, name: value})
        rest = {REST} if name == "distil_norms" else set()  # it has the last norm
        assert changed(ids(usual), ids(other)) == {"scales", "delta", *layers, *rest}


def test_the_delta_before_training_is_that_of_the_same_request_without(zoo_request: CompressRequest) -> None:
    for method in ("dare", "bitdelta", "impart-qt"):
        recipes = []
        for distil in (False, True):
            request = with_config(zoo_request, method=method, options={"distil": distil})
            checked, text = check_compress(request), "0" * 64
            planned = plan_jobs(checked, digests_of(request), text, Run(request.store))
            recipes.append([job.recipe.id for job in planned.jobs])
        assert recipes[0] == recipes[1]


# Another value of all else that a request holds; `config` and the checkpoints' content are above.
REST_OF_REQUEST = {
    "store": "elsewhere",
    "name": "named@prod",
    "device": "cpu",
    "workers": 7,
    "runner": "ray",
    "cluster": "ray://head:10001",
    "keep_factors": False,
    "trust": Trust(reread=True, refresh_from="digest"),
}


def test_the_table_holds_all_else_of_a_request() -> None:
    settled = {"base", "finetuned", "config", "calibration", "over"}
    assert set(REST_OF_REQUEST) | settled == set(CompressRequest.model_fields)


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


UNUSUAL: dict[str, object] = {
    "metadata": {"sizes": [4]},
    "num_fewshot": 0,
    "batch_size": "auto",
    "apply_chat_template": True,
    "system_instruction": "",
    "gen_kwargs": {"temperature": 0.5},
    "model_args": {"dtype": "bfloat16"},
    "log_samples": True,
    "seed": 1,
}


def test_all_that_decides_an_evaluation_is_part_of_its_id(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    base, finetuned = map(open_checkpoint, pair)
    usual = {"model": base, "task": "tinyzoo_math", "split": "test", "limit": None}
    others = {"model": finetuned, "task": "tinyzoo_code", "split": "validation", "limit": 4}
    before = evaluation_recipe(**usual).id  # type: ignore[arg-type]
    for name, value in others.items():
        assert evaluation_recipe(**{**usual, name: value}).id != before  # type: ignore[arg-type]
    for name, value in UNUSUAL.items():
        assert evaluation_recipe(**usual, options=MeasureOptions(**{name: value})).id != before  # type: ignore[arg-type]
    assert {*UNUSUAL, "include_path"} == set(MeasureOptions.model_fields)  # what lies there is told by digests
    monkeypatch.setitem(evaluation.VERSIONS, "evaluation", 2)
    assert evaluation_recipe(**usual).id != before  # type: ignore[arg-type]
    monkeypatch.undo()
    monkeypatch.setattr(evaluation, "task_fingerprint", lambda names, _: dict.fromkeys(names, "0" * 64))
    assert evaluation_recipe(**usual).id != before  # type: ignore[arg-type]


def test_who_made_it_when_and_how_is_no_part_of_an_id() -> None:
    assert set(Recipe.model_fields) == {"operation", "version", "config", "inputs"}
