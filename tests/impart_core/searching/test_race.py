"""A race spends few items on what is clearly worse, and loses nothing that is clearly better."""

import numpy as np
import pytest

from impart_core.searching.study import run_study
from tests.impart_core.searching.synthetic import BEST, Synthetic, quality, search

STEPS = {"x": {"range": [0.1, 1.5], "step": 0.1}, "y": {"choose": [BEST]}}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("parallel", [1, 4, 15])
def test_it_saves_items_and_keeps_the_best(seed: int, parallel: int) -> None:
    usual = {"compress": STEPS, "sampler": "random", "budget": {"trials": 15}, "seed": seed, "parallel": parallel}
    raced, whole = Synthetic(noise=0.05), Synthetic(noise=0.05)
    study = run_study(search(items=[10, 40, 160], **usual), raced, 160)
    all_of_them = run_study(search(items=160, **usual), whole, 160)
    assert raced.tally.items_evaluated < whole.tally.items_evaluated / 2
    assert study.winner is not None and all_of_them.winner is not None
    assert study.winner.values == all_of_them.winner.values == {"x": BEST, "y": BEST}
    assert study.winner.rungs[-1].items == 160


def test_all_candidates_are_scored_on_the_same_items() -> None:
    ledger = Synthetic()
    run_study(search(items=[10, 40, 80]), ledger, 100)
    assert {(start, stop) for _, _, start, stop in ledger.evaluated} == {(0, 10), (10, 40), (40, 80)}


def test_a_pruned_candidate_is_estimated_on_all_items_though_its_own_were_easier() -> None:
    """The first items are easier by 5: means over them alone would put all that was pruned above the best."""
    study = run_study(search(budget={"trials": 40}), Synthetic(easier=5.0), 80)
    best = study.winner
    assert best is not None
    pruned = [trial for trial in study.trials if trial.state == "pruned"]
    assert len(pruned) > 20
    for trial in pruned:
        assert trial.rungs[0].metrics["task"]["score"] > best.quantities["mean"]
        expected = best.quantities["mean"] + quality(trial.values) - quality(best.values)
        assert trial.quantities["mean"] == pytest.approx(expected, abs=0.15)  # 4.7 errors of 0.1·√2/√20


def test_noise_alone_prunes_few() -> None:
    """Of candidates that are all alike, against the best of those so far."""
    same = {"seed": {"choose": [str(number) for number in range(40)]}, "y": BEST}
    study = run_study(search(compress=same, sampler="grid", items=[40, 80], budget={}), Synthetic(noise=0.5), 80)
    assert sum(trial.state == "pruned" for trial in study.trials) < 20


def test_with_two_objectives_only_what_is_worse_by_both_is_pruned() -> None:
    study = run_study(search(objectives=["mean", "bytes"], budget={"trials": 40}), Synthetic(noise=0.01), 80)
    complete = [trial for trial in study.trials if trial.state == "complete"]
    for trial in study.trials:
        if trial.state == "pruned":
            assert any(
                quality(other.values) > quality(trial.values) and (other.bytes or 0) <= (trial.bytes or 0)
                for other in study.trials
            )
    values = np.array([[-trial.quantities["mean"], trial.quantities["bytes"]] for trial in complete])
    front = {trial.number for trial, own in zip(complete, values, strict=True) if not ((values < own).all(1)).any()}
    assert set(study.front) == front
    assert study.best in study.front


def test_a_candidate_that_breaks_a_bound_prunes_none_that_keeps_it() -> None:
    study = run_study(search(constraints=["bytes <= 900"], budget={"trials": 40}), Synthetic(noise=0.01), 80)
    kept = [trial for trial in study.trials if (trial.bytes or 0) <= 900]
    best = max(kept, key=lambda trial: quality(trial.values))
    assert study.best == best.number
