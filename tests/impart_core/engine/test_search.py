"""A search of real compressions: all is kept, nothing is scored twice, the winner is judged on unseen items."""

import shutil
from pathlib import Path
from typing import Any

import pytest

import impart_core as impart
from impart_core import tinyzoo
from impart_core.artifacts.delta import file_bytes
from impart_core.artifacts.study import read_study
from impart_core.base.errors import ConfigError, EvaluationError, InfeasibleBudgetError, UnknownNameError
from impart_core.engine.search import SearchReport, SearchRequest, check_search
from impart_core.evaluation.harness import Evaluator
from impart_core.lineage.graph import lineage_of
from impart_core.searching.file import parse_search
from impart_core.store.catalog import scan
from impart_core.store.gc import collect
from impart_core.store.names import resolve, set_ref
from impart_core.store.store import Store
from impart_core.store.verify import verify
from tests.impart_core.evaluation.own_tasks import SUMS, sums, write_task
from tests.impart_core.store.samples import NO_GRACE

pytestmark = pytest.mark.e2e

BASE, MATH = str(tinyzoo.path("base")), str(tinyzoo.path("math"))
CODE = str(tinyzoo.path("code"))
Measured = list[tuple[str, str, tuple[int, int]]]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task with few items in each split."""
    folder = tmp_path_factory.mktemp("task")
    splits = {"train": sums(range(3)), "validation": sums(range(10, 26)), "test": sums(range(30, 40))}
    write_task(folder, splits, **SUMS)
    return folder / "my_sums.yaml"


def settings(task: Path, **own: Any) -> dict[str, Any]:
    """Return a search over two methods and two seeds, by the loss of few answers, which takes no generation."""
    template = {
        "base": BASE,
        "finetuned": MATH,
        "cr": 16,
        "method": {"choose": ["impart", "lowrank"]},
        "seed": {"range": [0, 1], "step": 1},
    }
    usual = {
        "compress": template,
        "tasks": {str(task): "answer_loss"},
        "objectives": ["mean", "bytes"],
        "sampler": "grid",
        "parallel": 2,
        "items": [4, 12],
    }
    return {**usual, **own}


def merge(**first: Any) -> dict[str, Any]:
    """Return a merge of two models by Task Arithmetic at two scales."""
    models = [{"model": MATH, "parameters": {"weight": 1.0}, **first}, {"model": CODE, "parameters": {"weight": 1.0}}]
    parameters = {"lambda": {"choose": [0.5, 1.0]}}
    return {"merge_method": "task_arithmetic", "base_model": BASE, "models": models, "parameters": parameters}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    """What is measured: split, task and items."""
    noted: Measured = []
    measure = Evaluator.measure_items

    def note(self: Evaluator, task: str, items: tuple[int, int], **asked: Any) -> Any:
        noted.append((asked["split"], task, items))
        return measure(self, task, items, **asked)

    monkeypatch.setattr(Evaluator, "measure_items", note)
    return noted


@pytest.fixture(scope="module")
def done(task: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchReport, Store]:
    """An undisturbed search, and its store."""
    store = Store(tmp_path_factory.mktemp("searched") / "store")
    return impart.search(settings(task, name="math@best"), store=store, device="cpu"), store


def test_all_is_kept_and_whole(done: tuple[SearchReport, Store]) -> None:
    report, store = done
    assert (resolve(store, "math@best"), resolve(store, "math.study@best")) == (report.record.winner, report.id)
    assert read_study(store, report.id) == report.record
    assert verify(store, report.id).faults == ()
    study = report.record.study
    assert [trial.values for trial in study.trials] == [
        {"method": method, "seed": seed} for method in ("impart", "lowrank") for seed in (0, 1)
    ]
    assert all(trial.bytes and trial.quantities["bytes"] == trial.bytes for trial in study.trials)
    assert study.objectives == {"mean": "minimize", "bytes": "minimize"}


def test_the_winner_is_judged_on_the_test_split_beside_default_base_and_expert(
    done: tuple[SearchReport, Store],
) -> None:
    verdict = done[0].record.verdict
    assert verdict is not None
    assert list(verdict.test) == ["winner", "default", "base", "math"]
    assert list(verdict.margins) == ["default", "base", "math"]
    assert {standing.items["my_sums"] for standing in verdict.test.values()} == {10}
    losses = {name: standing.metrics["my_sums"]["answer_loss"] for name, standing in verdict.test.items()}
    assert len({loss for loss, _ in losses.values()}) >= 3
    assert all(error and error > 0 for _, error in losses.values())
    for name, margin in verdict.margins.items():
        assert margin.value == pytest.approx(losses["winner"][0] - losses[name][0])


def test_upkeep_keeps_all_trials_of_a_named_study(done: tuple[SearchReport, Store]) -> None:
    _, store = done
    trials = {name for name, entry in scan(store).items() if entry.kind == "trial"}
    assert len(trials) >= 4
    assert collect(store, NO_GRACE).artifacts == {}


def without_times(report: SearchReport) -> list[dict[str, Any]]:
    """Return the trials of a study without how long each took."""
    return [trial.model_dump(exclude={"seconds"}) for trial in report.record.study.trials]


def test_a_search_that_is_there_is_found_whole(
    done: tuple[SearchReport, Store], task: Path, measured: Measured
) -> None:
    again = impart.search(settings(task, name="other"), store=done[1], device="cpu")
    assert (again.cached, again.id, measured) == (True, done[0].id, [])
    assert resolve(done[1], "other") == done[0].record.winner


def test_a_search_that_shares_candidates_scores_the_others_only(
    done: tuple[SearchReport, Store], task: Path, measured: Measured
) -> None:
    template = {**settings(task)["compress"], "seed": {"range": [1, 2], "step": 1}, "method": "impart"}
    report = impart.search(settings(task, compress=template), store=done[1], device="cpu")
    assert [items for split, _, items in measured if split == "validation"][:1] == [(0, 4)]
    assert sum(items == (0, 4) for split, _, items in measured if split == "validation") == 1  # seed 2
    assert report.record.tally["found"] >= 1


def test_a_candidate_that_cannot_be_made_is_scored_as_failed(task: Path, tmp_path: Path) -> None:
    called = shutil.copytree(MATH, tmp_path / "base")  # as the base is, in the verdict
    template = {**settings(task)["compress"], "method": "impart", "seed": 0, "cr": {"choose": [16, 1e6]}}
    template["finetuned"] = str(called)
    report = impart.search(settings(task, compress=template, starts=[]), store=tmp_path / "store", device="cpu")
    good, bad = report.record.study.trials
    assert (good.state, bad.state, report.record.study.best) == ("complete", "failed", 0)
    assert bad.why and "Lower the CR" in bad.why
    assert report.record.verdict is not None
    assert list(report.record.verdict.test) == ["winner", "default", "base", "base (model)"]


def test_ends_of_ranges_that_cannot_be_are_told_before_any_work(task: Path, tmp_path: Path) -> None:
    """They stop nothing, for another parameter's value may allow them."""

    def notes(**own: Any) -> tuple[str, ...]:
        file = parse_search(settings(task, sampler="tpe", budget={"trials": 2}, **own))
        return check_search(SearchRequest(file=file, store=str(tmp_path / "store"), device="cpu")).notes

    template = {**settings(task)["compress"], "method": "impart", "seed": 0}
    (high,) = notes(compress={**template, "cr": {"range": [4, 1e6], "default": 16}})
    assert high.startswith("cr cannot be 1e+06")
    assert "Lower the CR" in high
    (beta,) = notes(compress={**template, "options": {"beta": {"range": [0.1, 1.5], "default": 0.6}}})
    assert "beta cannot be 1.5" in beta
    ties = {**merge(), "merge_method": "ties", "parameters": {"density": {"range": [0.2, 1.5], "default": 0.5}}}
    told = notes(merge=ties, compress=None)
    assert any("density cannot be 1.5" in note for note in told)


def test_merges_are_searched_and_the_winner_is_held_against_each_expert(task: Path, tmp_path: Path) -> None:
    file = settings(task, merge=merge(), compress=None, objectives="mean", name="both")
    report = impart.search(file, store=tmp_path, device="cpu")
    study, verdict = report.record.study, report.record.verdict
    assert [trial.values for trial in study.trials] == [{"parameters.lambda": 0.5}, {"parameters.lambda": 1.0}]
    assert verdict is not None and verdict.expert in ("math", "code")
    assert list(verdict.margins) == ["default", "base", "math", "code"]
    assert resolve(Store(tmp_path), "both") == report.record.winner


def test_merges_of_deltas_are_compressed_and_weighed_by_their_bytes(
    task: Path, tmp_path: Path, measured: Measured
) -> None:
    """Merged from a delta by its name and a checkpoint, then compressed: what is stored is what is scored."""
    delta = impart.compress(BASE, MATH, 8, store=tmp_path, name="math@low", method="magnitude", keep_factors=False)
    template = merge(model="math@low")
    template |= {"parameters": {"lambda": 0.7}, "impart": {"compress": {"method": "dare", "cr": {"choose": [8, 32]}}}}
    file = settings(task, merge=template, compress=None, name="both@small", items=6)
    report = impart.search(file, store=tmp_path, device="cpu")
    store, (larger, smaller) = Store(tmp_path), report.record.study.trials
    assert (larger.state, smaller.state) == ("complete", "complete")
    assert smaller.bytes and larger.bytes and smaller.bytes < larger.bytes / 2
    winner = impart.open_delta("both@small", store)
    assert winner.id == report.record.winner
    assert file_bytes(store, winner.id) == report.record.study.trials[report.record.study.best or 0].bytes
    assert report.record.verdict is not None
    assert list(report.record.verdict.margins) == ["default", "base", "math@low", "code"]
    nodes = {node.id for node in lineage_of(store, winner.id).nodes}
    assert delta.id in nodes
    again = len(measured)
    other = {**file, "name": None, "sampler": "random", "budget": {"trials": 2}}
    assert without_times(impart.search(other, store=tmp_path, device="cpu")) == without_times(report)
    assert measured[again:] == []


def test_a_search_begins_where_another_study_ended(task: Path, tmp_path: Path) -> None:
    template = {**merge(), "parameters": {"lambda": {"range": [0.1, 1]}, "normalize": False}}
    usual = {"merge": template, "compress": None, "objectives": "mean", "starts": [], "parallel": 2}
    cheap = settings(task, **usual, name="cheap", items=1, sampler="qmc", budget={"trials": 10})
    first = impart.search(cheap, store=tmp_path, device="cpu", workers=1)
    warm = {"name": "cmaes", "warm_study": "cheap.study"}
    file = settings(task, **usual, items=2, sampler=warm, budget={"trials": 2})
    report = impart.search(file, store=tmp_path, device="cpu", workers=1)
    assert report.record.study.warm == first.record.study.trials
    store = Store(tmp_path)
    assert first.id in store.manifest(report.id).parents
    set_ref(store, "cheap.study", report.id)  # another one now
    by_id = {**file, "sampler": report.record.file["sampler"]}
    assert by_id["sampler"]["warm_study"] == first.id
    again = impart.search(by_id, store=tmp_path, device="cpu")
    assert (again.id, again.cached) == (report.id, True)
    with pytest.raises(ConfigError, match=r"cheap\.study has 2 trials"):
        impart.search(file, store=tmp_path, device="cpu")
    with pytest.raises(UnknownNameError, match="cheap"):
        impart.search({**file, "sampler": {**warm, "warm_study": "chaep.study"}}, store=tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("own", "template", "kind", "why"),
    [
        ({"tasks": ["tinyzoo_maht"]}, {}, UnknownNameError, "Did you mean 'tinyzoo_math'"),
        ({"items": [4, 17]}, {}, EvaluationError, "has 16 validation items, and 17 are asked for"),
        ({"tasks": {"tinyzoo_math": "exact_mach"}}, {}, ConfigError, "no metric 'exact_mach'"),
        ({"name": "a/b"}, {}, ConfigError, "cannot name an artifact"),
        ({}, {"base": {"choose": ["a", "b"]}}, ConfigError, "no hole"),
        ({}, {"cr": 1e6}, InfeasibleBudgetError, "Lower the CR"),
        ({}, {"metod": "dare"}, ConfigError, "Did you mean 'method'"),
        ({"merge": merge(model={"choose": [MATH, CODE]}), "compress": None}, {}, ConfigError, "is no hole"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(
    own: dict[str, Any],
    template: dict[str, Any],
    kind: type[Exception],
    why: str,
    task: Path,
    tmp_path: Path,
    measured: Measured,
) -> None:
    compress = {**settings(task)["compress"], **template}
    with pytest.raises(kind, match=why):
        impart.search(settings(task, **{"compress": compress, **own}), store=tmp_path / "store", device="cpu")
    assert measured == []
    assert scan(Store(tmp_path / "store")) == {}
