"""Scores by item: what counts as one, and means of ranges from means of their pieces."""

import math
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from impart_core import tinyzoo
from impart_core.base.errors import EvaluationError, ModelError
from impart_core.evaluation.harness import Evaluator
from impart_core.evaluation.item_scores import joined, mean_of, means, pooled, require_finite, scores_of
from impart_core.evaluation.options import MeasureOptions
from impart_core.evaluation.result import ItemScores, Measure
from tests.impart_core.evaluation.own_tasks import SUMS, sums, write_task

scores = st.floats(-50, 50)


def record(item: int, **metrics: Any) -> dict[str, Any]:
    return {"doc_id": item, "filter": "none", "metrics": list(metrics), **metrics}


def of(start: int, *values: float) -> ItemScores:
    digests = tuple(f"{start + number:064x}" for number in range(len(values)))
    items = (start, start + len(values))
    return ItemScores(task="t", items=items, scores={"m": values}, higher_is_better={}, digests=digests)


def test_a_metric_counts_where_each_item_has_a_number() -> None:
    found = scores_of("t", [record(4, acc=1.0, f1=(1, 0)), record(2, acc=True, f1=(0, 0))])
    assert found == {"acc": {4: 1.0, 2: 1.0}}
    strict = {**record(4, acc=0.0), "filter": "strict"}
    assert scores_of("t", [record(4, acc=1), strict]) == {"acc": {4: 1.0}, "acc,strict": {4: 0.0}}
    with pytest.raises(EvaluationError, match=r"no metric that is a number for each item: f1 .*Use answer_loss"):
        scores_of("t", [record(4, f1=(1, 0))])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_not_finite_is_the_models_failure(value: float) -> None:
    with pytest.raises(ModelError, match="on 1 of 2 items: the model's outputs are not finite"):
        require_finite("t", {"m": {0: 1.0, 1: value}})


@given(values=st.lists(scores, min_size=2, max_size=40), cuts=st.sets(st.integers(1, 39), max_size=4))
def test_means_and_errors_of_pieces_give_those_of_all(values: list[float], cuts: set[int]) -> None:
    bounds = [0, *sorted(cut for cut in cuts if cut < len(values)), len(values)]
    parts = [of(start, *values[start:stop]) for start, stop in pairwise(bounds)]
    whole = means(joined(parts))["m"]
    assert whole == mean_of(values)
    assert whole.value == pytest.approx(mean(values), abs=1e-9)
    assert whole.stderr == pytest.approx(stdev(values) / len(values) ** 0.5, abs=1e-9)
    total = pooled([(len(part.digests), means(part)["m"]) for part in parts])
    assert (total.value, total.stderr) == pytest.approx((whole.value, whole.stderr), abs=1e-6)


def test_one_item_has_no_standard_error() -> None:
    assert mean_of([0.25]).stderr is None
    assert pooled([(1, mean_of([0.25]))]).stderr is None


@pytest.fixture(scope="module")
def math_model() -> Evaluator:
    return Evaluator(tinyzoo.path("math"))


@pytest.mark.e2e
@pytest.mark.parametrize("measure", ["metrics", "answer_loss"])
def test_ranges_that_are_joined_are_the_whole_range_item_by_item(math_model: Evaluator, measure: Measure) -> None:
    """Bit for bit where they meet at a cut; elsewhere but for what another batch does to float32 sums."""
    whole = math_model.measure_items("tinyzoo_math", (0, 60), measure=measure)
    parts = [math_model.measure_items("tinyzoo_math", items, measure=measure) for items in ((0, 50), (50, 60))]
    assert joined(parts) == whole
    odd = joined([math_model.measure_items("tinyzoo_math", items, measure=measure) for items in ((0, 7), (7, 60))])
    assert odd.digests == whole.digests
    for name, found in odd.scores.items():
        assert found == pytest.approx(whole.scores[name], abs=1e-5)


@pytest.mark.e2e
def test_items_are_the_same_for_any_model_and_their_scores_those_of_an_evaluation(math_model: Evaluator) -> None:
    ours = math_model.measure_items("tinyzoo_math", (0, 300), measure="answer_loss")
    theirs = Evaluator(tinyzoo.path("code")).measure_items("tinyzoo_math", (0, 10), measure="answer_loss")
    assert theirs.digests == ours.digests[:10]
    assert theirs.scores != {"answer_loss": ours.scores["answer_loss"][:10]}
    assert ours.higher_is_better == {"answer_loss": False}
    measured = math_model.measure(["tinyzoo_math"], split="validation").tasks["tinyzoo_math"].metrics["answer_loss"]
    assert means(ours)["answer_loss"].value == pytest.approx(measured.value, abs=1e-5)
    assert means(ours)["answer_loss"].stderr == pytest.approx(measured.stderr, abs=1e-5)


@pytest.mark.e2e
def test_an_items_examples_do_not_depend_on_what_else_is_measured(tmp_path: Path) -> None:
    splits = {"train": sums(range(30, 60)), "validation": sums(range(12))}
    name, place = write_task(tmp_path, splits, **SUMS)
    options = place.model_copy(update={"num_fewshot": 2})
    model = Evaluator(tinyzoo.path("math"), options=options)
    whole = model.measure_items(name, (0, 12), measure="answer_loss").scores["answer_loss"]
    alone = model.measure_items(name, (8, 12), measure="answer_loss").scores["answer_loss"]
    assert alone == pytest.approx(whole[8:], abs=1e-5)
    other = options.model_copy(update={"seed": 1})
    again = Evaluator(tinyzoo.path("math"), options=other).measure_items(name, (0, 12), measure="answer_loss")
    assert sorted(again.scores["answer_loss"]) != pytest.approx(sorted(whole), abs=1e-3)


@pytest.mark.e2e
def test_what_is_drawn_in_generation_follows_from_the_seed(tmp_path: Path) -> None:
    name, place = write_task(tmp_path, {"validation": sums(range(20))}, **SUMS)
    sampled = {"do_sample": True, "temperature": 3.0}
    options = MeasureOptions(**{**place.model_dump(), "gen_kwargs": sampled})
    first, again = (Evaluator(tinyzoo.path("math"), options=options).measure_items(name, (0, 20)) for _ in range(2))
    assert first == again
