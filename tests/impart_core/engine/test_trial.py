"""Models scored item by item: what the store holds is not measured again, and a model that fails is told."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from impart_core import tinyzoo
from impart_core.artifacts.trial import TrialContent, is_failure, read_scores
from impart_core.base.errors import EvaluationError, StoreError, TensorValueError
from impart_core.checkpoint.index import open_checkpoint
from impart_core.engine import library as impart
from impart_core.engine.references import Run, TrialJob
from impart_core.engine.trial import score_model
from impart_core.evaluation.harness import Evaluator
from impart_core.store.catalog import scan
from impart_core.store.store import Store

pytestmark = pytest.mark.e2e

LOADED: list[Path] = []
MEASURED: list[tuple[str, tuple[int, int]]] = []


@pytest.fixture(autouse=True)
def _watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Note what is measured, and which models are loaded for that."""
    LOADED.clear()
    MEASURED.clear()
    measure, load = Evaluator.measure_items, Evaluator._loaded

    def noted(self: Evaluator, task: str, items: tuple[int, int], **asked: Any) -> Any:
        MEASURED.append((task, items))
        return measure(self, task, items, **asked)

    def loaded(self: Evaluator) -> Any:
        if self._model is None:
            LOADED.append(self.folder)
        return load(self)

    monkeypatch.setattr(Evaluator, "measure_items", noted)
    monkeypatch.setattr(Evaluator, "_loaded", loaded)


def job(store: Path, items: tuple[int, int] = (0, 4), model: Path | None = None, **asked: Any) -> TrialJob:
    usual: dict[str, Any] = {"tasks": ("tinyzoo_math",), "measure": "answer_loss"}
    if "delta" not in asked:
        usual["checkpoint"] = open_checkpoint(model or tinyzoo.path("math"))
    return TrialJob(Run(str(store)), "a model", items=items, **{**usual, **asked})


def test_only_what_the_store_does_not_hold_is_measured_and_a_model_is_loaded_once(tmp_path: Path) -> None:
    tasks = ("tinyzoo_math", "tinyzoo_code")
    first = score_model(job(tmp_path, (0, 52), tasks=tasks))
    assert [*MEASURED] == [(task, items) for task in tasks for items in ((0, 50), (50, 52))]
    assert len(LOADED) == 1
    again = score_model(job(tmp_path, (0, 52), tasks=tasks))
    assert len(MEASURED) == 4
    assert [one.measured for one in (*first.scores, *again.scores)] == [52, 52, 0, 0]
    assert [one.trials for one in first.scores] == [one.trials for one in again.scores]
    longer = score_model(job(tmp_path, (0, 53))).of("tinyzoo_math")
    assert MEASURED[4:] == [("tinyzoo_math", (50, 53))]
    assert longer.measured == 3
    scores = read_scores(Store(tmp_path), longer.trials)
    assert scores.items == (0, 53)
    value, error = longer.metrics["answer_loss"]
    values = torch.tensor(scores.scores["answer_loss"], dtype=torch.float64)
    assert (value, error) == pytest.approx((float(values.mean()), float(values.std()) / 53**0.5))
    assert {entry.id for entry in scan(Store(tmp_path)).values()} >= {*first.scores[1].trials, *longer.trials}


def test_a_delta_is_scored_as_the_model_that_it_gives_and_is_its_trials_parent(tmp_path: Path) -> None:
    base = open_checkpoint(tinyzoo.path("base"))
    store = str(tmp_path / "store")
    delta = impart.compress(tinyzoo.path("base"), tinyzoo.path("math"), 8, store=store).manifest.id
    impart.reconstruct(delta, tinyzoo.path("base"), tmp_path / "out", store=store)
    of_delta = score_model(job(tmp_path / "store", delta=delta, base=base)).of("tinyzoo_math")
    of_folder = score_model(job(tmp_path / "store", model=tmp_path / "out")).of("tinyzoo_math")
    assert of_delta.metrics == of_folder.metrics
    assert of_delta.trials != of_folder.trials
    assert Store(store).manifest(of_delta.trials[0]).parents == (delta,)
    elsewhere = job(tmp_path / "results", delta=delta, base=base, source=store)
    assert score_model(elsewhere).of("tinyzoo_math").measured == 0  # found where the delta is
    assert len(MEASURED) == 2


def test_a_merged_model_is_found_by_its_recipe_before_any_tensor_is_read(tmp_path: Path) -> None:
    first = score_model(job(tmp_path, inputs={"merged": "ab" * 32}))
    unread = job(tmp_path, inputs={"merged": "ab" * 32}, checkpoint=None)
    assert score_model(unread).of("tinyzoo_math").trials == first.of("tinyzoo_math").trials
    assert score_model(job(tmp_path)).of("tinyzoo_math").trials != first.of("tinyzoo_math").trials


def test_a_model_that_gives_nan_is_told_once_and_measured_no_further(tmp_path: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"].fill_(float("nan"))

    tasks = ("tinyzoo_math", "tinyzoo_code")
    asked = job(tmp_path / "store", (0, 60), spoiled(tmp_path / "model", spoil), tasks=tasks)
    found = score_model(asked)
    assert (found.scores, found.may_pass) == ((), False)
    assert found.failure is not None
    assert "not finite" in found.failure
    assert MEASURED == [("tinyzoo_math", (0, 50))]
    again = score_model(asked)
    assert (again.failure, again.failed_trial) == (found.failure, found.failed_trial)
    assert len(MEASURED) == 1


def test_a_model_that_no_library_loads_is_told_by_its_name(tmp_path: Path) -> None:
    model = spoiled(tmp_path / "model", lambda tensors: tensors.pop("model.embed_tokens.weight"))
    (model / "config.json").write_text('{"model_type": "no such model"}')
    found = score_model(job(tmp_path / "store", model=model))
    assert found.failure is not None
    assert found.failure.startswith("The model in a model cannot be loaded")
    assert str(tmp_path) not in found.failure


def test_what_may_pass_is_tried_again_and_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("impart_core.base.retry.time.sleep", lambda _: None)
    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "measure_items", raising(torch.OutOfMemoryError("CUDA out of memory.")))
        found = score_model(job(tmp_path))
    assert (found.scores, found.may_pass, found.failure) == ((), True, "CUDA out of memory.")
    assert found.failed_trial is not None
    assert is_failure(Store(tmp_path).manifest(found.failed_trial))
    passed = score_model(job(tmp_path))
    assert passed.failure is None
    assert passed.of("tinyzoo_math").trials == (found.failed_trial,)
    assert isinstance(content := Store(tmp_path).manifest(found.failed_trial).content, TrialContent)
    assert content.failure is None


def test_a_model_that_cannot_be_made_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("impart_core.engine.trial.model_folder", raising(TensorValueError("q_proj holds NaN.")))
    found = score_model(job(tmp_path, inputs={"merged": "ab" * 32}))
    assert (found.failure, found.may_pass) == ("q_proj holds NaN.", False)
    monkeypatch.undo()
    assert score_model(job(tmp_path, inputs={"merged": "ab" * 32})).failure == "q_proj holds NaN."


@pytest.mark.parametrize("error", [StoreError("The store is gone."), ValueError("a mistake")])
def test_what_is_not_the_models_failure_is_no_trial(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("impart_core.engine.trial.model_folder", raising(error))
    with pytest.raises(type(error), match=str(error)):
        score_model(job(tmp_path))
    assert not Store(tmp_path).ids()


@pytest.mark.parametrize("asked", [{"items": (0, 301)}, {"items": (4, 4)}, {"tasks": ("tinyzoo_math", "humaneval")}])
def test_a_wrong_request_is_refused(asked: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(EvaluationError):
        score_model(job(tmp_path, **asked))


def raising(error: Exception) -> Callable[..., Any]:
    def work(*args: Any, **options: Any) -> Any:
        raise error

    return work


def spoiled(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """Return a copy of a model of the zoo whose tensors were changed."""
    shutil.copytree(tinyzoo.path("math"), folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
