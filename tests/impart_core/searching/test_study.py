"""A study is a function of its file and of scores: killed, begun again or shared, it comes to the same."""

from typing import Any

import pytest
import torch
from threadpoolctl import threadpool_info

from impart_core.base.errors import ConfigError
from impart_core.searching.result import Study
from impart_core.searching.study import run_study
from impart_core.searching.suggest import Suggester, Suggestion
from impart_core.searching.warm import fitting_trials
from tests.impart_core.searching.synthetic import BEST, Killed, Recorded, Synthetic, quality, search

AVAILABLE = 80
SAMPLERS: list[Any] = ["random", "qmc", "tpe", "gp", "cmaes", {"name": "cmaes", "warm_start": 10}, "nsga2", "nsga3"]
TWO = ["mean", "bytes"]


def settings_of(sampler: Any) -> dict[str, Any]:
    """Return a short search by a sampler, long enough for it to learn."""
    short = {"name": sampler, "startup": 4} if sampler in ("tpe", "gp") else sampler
    return {"sampler": short, "parallel": 2, "budget": {"trials": 12}, "starts": []}


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_a_search_killed_five_times_ends_as_an_undisturbed_one(sampler: Any) -> None:
    file = search(**settings_of(sampler))
    undisturbed = Synthetic()
    study = run_study(file, undisturbed, AVAILABLE)
    recorded: Recorded = {}
    evaluated = []
    for dies_at in (0, 2, 1, 3, 1):
        ledger = Synthetic(recorded, dies_at=dies_at)
        with pytest.raises(Killed):
            run_study(file, ledger, AVAILABLE)
        evaluated += ledger.evaluated
    last = Synthetic(recorded)
    assert run_study(file, last, AVAILABLE) == study
    assert sorted(evaluated + last.evaluated) == sorted(undisturbed.evaluated)
    assert last.tally.evaluated == len(last.evaluated)
    assert last.tally.found == undisturbed.tally.found + len(evaluated)


@pytest.mark.parametrize("sampler", ["tpe", pytest.param("gp", marks=pytest.mark.slow), "nsga2", "nsga3"])
def test_a_search_for_two_objectives_is_repeated_too(sampler: str) -> None:
    file = search(objectives=TWO, constraints=["bytes <= 1800"], **settings_of(sampler))
    studies = [run_study(file, Synthetic(), AVAILABLE) for _ in range(2)]
    assert studies[0] == studies[1]
    assert len(studies[0].front) > 1


def test_the_ledger_alone_gives_the_study() -> None:
    file = search(sampler="tpe", parallel=3)
    first = Synthetic()
    study = run_study(file, first, AVAILABLE)
    again = Synthetic(first.recorded, dies_at=0)
    assert run_study(file, again, AVAILABLE) == study
    assert again.tally.evaluated == again.tally.items_evaluated == 0
    assert again.tally.items_found == first.tally.items_evaluated


def test_a_study_is_the_same_read_back_from_json() -> None:
    study = run_study(search(), Synthetic(), AVAILABLE)
    assert Study.model_validate_json(study.model_dump_json()) == study


def test_searches_that_share_candidates_score_them_once() -> None:
    grid = {"x": {"range": [0.1, 0.9], "step": 0.2}, "y": {"choose": [0.5, 0.7]}}
    finer = {"x": {"range": [0.1, 0.9], "step": 0.1}, "y": {"choose": [0.7, 0.9]}}
    usual: dict[str, Any] = {"sampler": "grid", "items": [80], "budget": {}}
    first = Synthetic()
    run_study(search(compress=grid, **usual), first, AVAILABLE)
    second = Synthetic(first.recorded)
    study = run_study(search(compress=finer, **usual), second, AVAILABLE)
    assert (len(first.evaluated), len(second.evaluated), second.tally.found) == (10, 13, 5)
    assert study.stopped == "every candidate was tried"
    assert {trial.values["x"] for trial in study.trials} == {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9}


def test_other_tasks_of_a_candidate_are_scored_without_those_that_are_there() -> None:
    first = Synthetic()
    run_study(search(items=80), first, AVAILABLE)
    second = Synthetic(first.recorded)
    run_study(search(items=80, tasks=["task", "other"], budget={"trials": 1}), second, AVAILABLE)
    assert [task for _, task, _, _ in second.evaluated] == ["other"]


def test_no_candidate_is_tried_twice_and_a_small_space_is_tried_whole() -> None:
    space = {"x": {"range": [0, 1.5], "step": 0.5}, "y": {"choose": [0.5, 0.7, 0.9]}}
    for sampler in ("random", "tpe", "cmaes", "nsga2"):
        ledger = Synthetic()
        study = run_study(search(compress=space, sampler=sampler, budget={"trials": 100}), ledger, AVAILABLE)
        assert len({trial.digest for trial in study.trials}) == len(study.trials) == 12
        assert study.stopped == "every candidate was tried"
        assert len(set(ledger.evaluated)) == len(ledger.evaluated)


def test_a_trial_that_fails_is_told_and_does_not_stop_the_study() -> None:
    ledger = Synthetic(fails=lambda values: values["x"] > 1)
    study = run_study(search(sampler="tpe", parallel=2, budget={"trials": 30}), ledger, AVAILABLE)
    failed = [trial for trial in study.trials if trial.state == "failed"]
    assert len(study.trials) == 30 and failed
    assert all(trial.values["x"] > 1 and trial.why == "out of memory" and not trial.quantities for trial in failed)
    assert study.winner is not None and study.winner.values["x"] <= 1
    late = [trial for trial in study.trials[20:] if trial.state == "failed"]
    assert len(late) <= 2  # of 10, where a third would fail by chance: what fails is avoided


def test_a_search_in_which_all_fails_ends_without_a_winner() -> None:
    study = run_study(search(sampler="tpe"), Synthetic(fails=lambda _: True), AVAILABLE)
    assert (study.best, study.front, study.margin, study.importance) == (None, (), None, {})
    assert {trial.state for trial in study.trials} == {"failed"}


def test_scores_that_are_not_finite_are_failures() -> None:
    study = run_study(search(), Synthetic(noise=float("nan")), AVAILABLE)
    assert {trial.why for trial in study.trials} == {"task: score is not finite on every item"}


def test_the_winner_keeps_the_constraints() -> None:
    free = run_study(search(sampler="tpe"), Synthetic(), AVAILABLE)
    bound = run_study(search(sampler="tpe", constraints=["bytes <= 1000"]), Synthetic(), AVAILABLE)
    assert free.winner and free.winner.bytes and free.winner.bytes > 1000
    assert bound.winner and bound.winner.bytes and bound.winner.bytes <= 1000
    assert any(trial.state == "complete" and not trial.feasible for trial in bound.trials)


def test_bounds_that_none_keeps_leave_no_winner() -> None:
    study = run_study(search(constraints=["mean >= 99"]), Synthetic(), AVAILABLE)
    assert study.best is None


@pytest.mark.parametrize(
    ("budget", "parallel", "trials", "stopped"),
    [
        ({"trials": 7}, 3, 7, "7 trials were tried"),
        ({"items": 810}, 3, 10, "800 of 810 items were used"),
        ({"minutes": 0.1}, 1, 6, "0.1 minutes of evaluation were used"),  # each takes a second, as the ledger has it
        ({"minutes": 0.1}, 3, 18, "0.1 minutes of evaluation were used"),
    ],
)
def test_a_budget_ends_a_search(budget: dict[str, float], parallel: int, trials: int, stopped: str) -> None:
    file = search(budget=budget, parallel=parallel, items=80)
    study = run_study(file, Synthetic(), AVAILABLE)
    assert (len(study.trials), study.stopped) == (trials, stopped)


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes", {"name": "cmaes", "warm_start": 10}], ids=str)
def test_a_sampler_that_learns_comes_near_to_the_best(sampler: Any) -> None:
    """Nearer than the best of as many at random, which is at about 2.25/(40π) = −0.02."""
    trials = 20 if sampler == "gp" else 40
    file = search(**{**settings_of(sampler), "budget": {"trials": trials}, "items": 80, "parallel": 1})
    study = run_study(file, Synthetic(noise=0.02), AVAILABLE)
    assert study.winner is not None
    assert quality(study.winner.values) > -0.01


CMAES = {"name": "cmaes", "warm_study": "cheap"}


def cheaper(**own: Any) -> Study:
    """Return a study that covers the space on few items of another task."""
    return run_study(search(sampler="qmc", items=20, tasks=["other"], **own), Synthetic(), AVAILABLE)


def test_another_study_tells_where_to_begin_and_costs_nothing() -> None:
    file = search(sampler=CMAES, budget={"items": 800}, items=80, starts=[])
    warm = fitting_trials(file, cheaper(), "cheap")
    assert len(warm) == 20
    ledgers = [Synthetic(), Synthetic()]
    first, again = (run_study(file, ledger, AVAILABLE, warm=warm) for ledger in ledgers)
    assert first == again and first.warm == warm
    assert len(first.trials) == 10  # none of the items went to the other study's trials
    cold = run_study(search(sampler="cmaes", budget={"items": 800}, items=80, starts=[]), Synthetic(), AVAILABLE)
    assert first.trials[1:] != cold.trials[1:]
    begun = [sum(quality(trial.values) for trial in study.trials[1:6]) for study in (first, cold)]
    assert begun[0] > begun[1]


def test_trials_outside_of_the_space_tell_nothing() -> None:
    file = search(sampler=CMAES, compress={"x": {"range": [0, 1.2]}, "y": {"range": [0, 1.5]}})
    study = cheaper()
    warm = fitting_trials(file, study, "cheap")
    assert warm == tuple(trial for trial in study.trials if trial.values["x"] <= 1.2) != study.trials
    assert run_study(file, Synthetic(), AVAILABLE, warm=warm).warm == warm


@pytest.mark.parametrize(
    ("own", "why"),
    [
        ({"compress": {"x": {"range": [0, 1.5]}, "z": {"range": [0, 1.5]}}}, "parameters x, y, and this search x, z"),
        ({"compress": {"x": {"range": [0, 1.5]}, "y": {"range": [1.4, 1.5]}}}, "has [0-9] trials with values"),
        ({"objectives": "answer_loss"}, "looks for maximize mean; this search begins with minimize answer_loss"),
    ],
)
def test_a_study_that_cannot_tell_where_to_begin_is_refused(own: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        fitting_trials(search(sampler=CMAES, **own), cheaper(), "cheap")


def test_importance_is_that_of_the_parameter_that_matters() -> None:
    compress = {"x": {"range": [0, 1.5]}, "colour": {"choose": ["red", "green", "blue"]}}
    study = run_study(search(compress=compress, sampler="qmc", budget={"trials": 40}), Synthetic(), AVAILABLE)
    assert list(study.importance) == ["x", "colour"]
    assert study.importance["x"] > 0.8


def test_the_margin_is_over_the_default_candidate() -> None:
    default = {"x": {"range": [0, 1.5], "default": 0.2}, "y": {"choose": [BEST]}}
    study = run_study(search(compress=default, sampler="tpe"), Synthetic(), AVAILABLE)
    assert study.trials[0].values == {"x": 0.2, "y": BEST}
    assert study.winner is not None and study.margin is not None
    expected = quality(study.winner.values) - quality(study.trials[0].values)
    assert abs(study.margin.value - expected) < 4 * (study.margin.stderr or 0)
    assert study.margin.p < 1e-6


def test_progress_is_told_after_each_batch() -> None:
    told: list[tuple[str, int, int, str]] = []
    run_study(search(parallel=8), Synthetic(), AVAILABLE, lambda *each: told.append(each))
    assert [each[1:3] for each in told] == [(0, 20), (8, 20), (16, 20), (20, 20)]
    assert all(each[0] == "search" and each[3].startswith("best ") for each in told[1:])


@pytest.mark.usefixtures("two_threads")
def test_what_is_suggested_depends_on_no_number_of_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    ask = Suggester._next

    def looked(self: Suggester) -> Suggestion | None:
        seen.extend([torch.get_num_threads(), *(one["num_threads"] for one in threadpool_info() if is_blas(one))])
        return ask(self)

    def is_blas(library: dict[str, Any]) -> bool:
        return bool(library["user_api"] == "blas")

    monkeypatch.setattr(Suggester, "_next", looked)
    Suggester(search(sampler="gp")).ask(2)
    assert len(seen) >= 4 and set(seen) == {1}
