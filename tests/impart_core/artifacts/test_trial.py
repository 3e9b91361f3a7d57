"""The trial: what makes it, what it holds, and what becomes of one that failed."""

import json
from pathlib import Path
from typing import Any

import pytest

from impart_core.artifacts import trial
from impart_core.artifacts.trial import (
    SCORES_FILE,
    TrialContent,
    is_failure,
    publish_failure,
    publish_trial,
    read_scores,
    settles,
    trial_recipe,
)
from impart_core.base.canonical import canonical_json
from impart_core.base.errors import ArtifactNotFoundError, CorruptArtifactError
from impart_core.evaluation.options import MeasureOptions
from impart_core.evaluation.result import ItemScores
from impart_core.store.manifest import Manifest
from impart_core.store.provenance import Stopwatch
from impart_core.store.recipe import Recipe
from impart_core.store.store import Store
from impart_core.store.verify import verify

ASKED: dict[str, Any] = {
    "model": {"merged": "ab" * 32},
    "task": "tinyzoo_math",
    "items": (0, 3),
    "split": "validation",
    "measure": "answer_loss",
}
OTHERS: dict[str, Any] = {
    "model": {"delta": "ab" * 32},
    "task": "tinyzoo_code",
    "items": (0, 4),
    "split": "test",
    "measure": "metrics",
}
UNUSUAL: dict[str, Any] = {
    "metadata": {"sizes": [4]},
    "num_fewshot": 0,
    "batch_size": "auto",
    "apply_chat_template": True,
    "system_instruction": "",
    "gen_kwargs": {"temperature": 0.5},
    "model_args": {"dtype": "bfloat16"},
    "seed": 1,
}
VALUES = (0.1, 1 / 3, 5e-324)


def scores_of(*values: float, start: int = 0) -> ItemScores:
    items, digests = (start, start + len(values)), tuple(f"{number:064x}" for number in range(len(values)))
    return ItemScores(
        task="tinyzoo_math",
        items=items,
        scores={"answer_loss": values},
        higher_is_better={"answer_loss": False},
        tokens=(2,) * len(values),
        digests=digests,
    )


def publish(store: Store, scores: ItemScores | None = None) -> Manifest:
    scores = scores or scores_of(*VALUES)
    return publish_trial(store, trial_recipe(**{**ASKED, "items": scores.items}), scores, (), Stopwatch())


def fail(store: Store, why: str, *, may_pass: bool) -> Manifest:
    return publish_failure(store, trial_recipe(**ASKED), why, (), Stopwatch(), may_pass=may_pass)


def test_all_that_decides_a_trial_is_part_of_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [trial_recipe(**ASKED).id]
    ids += [trial_recipe(**{**ASKED, name: value}).id for name, value in OTHERS.items()]
    ids += [trial_recipe(**ASKED, options=MeasureOptions(**{name: value})).id for name, value in UNUSUAL.items()]
    monkeypatch.setitem(trial.VERSIONS, "trial", 2)
    ids.append(trial_recipe(**ASKED).id)
    monkeypatch.undo()
    monkeypatch.setattr(trial, "task_fingerprint", lambda names, _: dict.fromkeys(names, "0" * 64))
    ids.append(trial_recipe(**ASKED).id)
    assert len(set(ids)) == len(ids)
    assert {*UNUSUAL, "include_path", "log_samples"} == set(MeasureOptions.model_fields)


def test_whether_samples_are_kept_is_no_part_of_a_trial() -> None:
    assert trial_recipe(**ASKED, options=MeasureOptions(log_samples=True)) == trial_recipe(**ASKED)


def test_an_id_moves_only_with_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the task's definition, which holds the version of lm-eval."""
    monkeypatch.setattr(trial, "task_fingerprint", lambda names, _: dict.fromkeys(names, ""))
    assert trial_recipe(**ASKED).id == "d7e74ab5a494f9feed19ccfd87a099711865006a9684911626cbbfbc278dc430"


def test_scores_are_read_as_they_were(store: Store) -> None:
    made = publish(store)
    assert isinstance(made.content, TrialContent)
    assert made.content.items == 3
    assert read_scores(store, [made.id]) == scores_of(*VALUES)
    assert made.content.summary(made.recipe) == "tinyzoo_math items 0 to 3 (validation)"
    assert not verify(store, made.id).faults


def test_trials_that_follow_one_another_are_read_as_one(store: Store) -> None:
    trials = [publish(store), publish(store, scores_of(4.0, 5.0, start=3))]
    found = read_scores(store, [one.id for one in trials])
    assert (found.items, found.scores["answer_loss"]) == ((0, 5), (*VALUES, 4.0, 5.0))


def test_a_failure_gives_way_to_scores_and_scores_to_no_failure(store: Store) -> None:
    passing = fail(store, "Too little memory.", may_pass=True)
    assert (is_failure(passing), settles(passing)) == (True, False)
    assert passing.content.summary(passing.recipe).startswith("failed on tinyzoo_math")
    with pytest.raises(CorruptArtifactError, match=r"has no scores: Too little memory\."):
        read_scores(store, [passing.id])
    made = publish(store)
    assert (is_failure(made), settles(made)) == (False, True)
    assert fail(store, "Too little memory.", may_pass=True) == made
    assert fail(store, "NaN.", may_pass=False) == made
    assert store.manifest(made.id) == made


def test_a_failure_that_stays_takes_the_place_of_one_that_may_pass(store: Store) -> None:
    fail(store, "Too little memory.", may_pass=True)
    final = fail(store, "NaN.", may_pass=False)
    assert settles(final)
    assert store.manifest(final.id).content == TrialContent(metrics={}, items=0, failure="NaN.")
    assert not verify(store, final.id).faults


@pytest.mark.parametrize(
    "change",
    [
        {"scores": {"answer_loss": [0.1, 0.2, 0.3]}},
        {"scores": {"answer_loss": [0.1, 0.2]}},
        {"scores": {}},
        {"tokens": [1]},
        {"digests": []},
        {"items": [0, 9**15]},
        {"items": [3, 0]},
        {"more": 1},
        None,
        "[" * 100_000,
    ],
)
def test_a_file_that_holds_other_scores_than_its_manifest_tells_is_noticed(change: Any, tmp_path: Path) -> None:
    content = publish(Store(tmp_path / "store")).content
    value = scores_of(*VALUES).model_dump(mode="json")
    path = tmp_path / SCORES_FILE
    if isinstance(change, str):
        path.write_text(change)
    else:
        path.write_bytes(canonical_json(None if change is None else {**value, **change}))
    with pytest.raises(CorruptArtifactError, match=SCORES_FILE):
        content.check(SCORES_FILE, path)
    path.write_text(json.dumps(value))
    content.check(SCORES_FILE, path)


def test_what_is_no_trial_is_not_read_as_one(tmp_path: Path) -> None:
    from tests.impart_core.store.samples import sample

    store = Store(tmp_path / "store")
    store.publish(*sample(tmp_path / "sample"))
    with pytest.raises(CorruptArtifactError, match="is of the kind 'evaluation', no trial"):
        read_scores(store, [sample(tmp_path / "sample")[0].id])
    with pytest.raises(ArtifactNotFoundError):
        read_scores(store, [Recipe(operation="trial", version=1, config={}, inputs={}).id])
