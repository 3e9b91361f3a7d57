"""Splits of tasks that are not the zoo's own, on a task file written here."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from impart_core.base.errors import EvaluationError
from impart_core.evaluation.catalogue import USUAL
from impart_core.evaluation.prepared import _set_up, load_tasks, split_of


def _task(*, validation: bool, test: bool) -> Any:
    return SimpleNamespace(
        has_validation_docs=lambda: validation,
        has_test_docs=lambda: test,
        get_config=lambda key: 0,
        set_fewshot_seed=lambda seed: None,
    )


def test_a_task_without_a_validation_split_says_so() -> None:
    with pytest.raises(EvaluationError, match="'mine' has no validation split"):
        _set_up("mine", _task(validation=False, test=True), "validation", USUAL)


def test_the_test_split_falls_back_to_validation_as_lm_eval_does() -> None:
    task = _task(validation=True, test=False)
    _set_up("mine", task, "test", USUAL)
    assert split_of(task) == "validation"


@pytest.mark.e2e
def test_a_local_task_is_set_to_its_validation_items() -> None:
    loaded = load_tasks(["tinyzoo_math"], "validation", USUAL)
    task = loaded["tasks"]["tinyzoo_math"]
    assert split_of(task) == "validation"
    assert list(task.eval_docs) == list(task.validation_docs())


@pytest.mark.e2e
def test_data_that_cannot_be_loaded_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", _no_network)
    with pytest.raises(EvaluationError, match=r"gsm8k cannot be loaded.*network"):
        load_tasks(["gsm8k"], "test", USUAL)


def _no_network(*args: Any, **options: Any) -> None:
    raise ConnectionError("no route")
